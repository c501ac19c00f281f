import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { evaluate } from '../experiment_base/train.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { importTask } from '../lib/environments/task.ts';
import { refusal } from '../testing/mains.ts';
import { writeTestData } from '../testing/model.ts';
import { BACKEND, NODE, runProcess } from '../testing/processes.ts';
import { loadPolicy } from './policy.ts';

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));

const script = (...args: string[]) => runProcess([...NODE, 'tools/evaluate.ts', ...args]);

it('says what the evaluation of a run would give', async () => {
  const run = script('models/tiny', '--backend', BACKEND, '--eval-size', '30', '--samples', '4');
  const { model, tokenizer, options } = await loadPolicy('models/tiny', { backend: BACKEND as 'wasm' });
  const problems = loadProblems('tasks/sums/test.jsonl').slice(0, 30);
  const { metrics: shares } = await evaluate(model, tokenizer, problems, { samples: 4 }, options);
  const [greedy, format, ability, sampled, two, four] = Object.values(shares).map(
    (share) => `${(100 * share).toFixed(1)} %`,
  );
  const { code, stdout, stderr } = await run;
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  expect(stdout.split('\n').slice(1)).toEqual([
    'model: models/tiny',
    '30 problems of tasks/sums/test.jsonl',
    `greedy: ${greedy} (${format} give an answer, of which ${ability} are right)`,
    `sampled: ${sampled}, at temperature 1`,
    `pass@2 ${two}, pass@4 ${four}: at least one of so many samples is right`,
    '',
  ]);
});

it('asks a run what it has held out itself, and refuses a checkpoint that is damaged', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'evaluate-'));
  const data = join(folder, 'data.jsonl');
  writeTestData(data, 12);
  const flags = `--dataset ${data} --eval-size 5 --max-steps 1 --batch-size 2 --num-generations 2 --backend ${BACKEND}`;
  const trained = await runProcess([
    ...[...NODE, 'experiment_base/train.ts', ...flags.split(' ')],
    ...['--output-dir', join(folder, 'run')],
  ]);
  const { code, stdout } = await script(join(folder, 'run'), '--backend', BACKEND, '--samples', '0');
  expect({ code, trained: trained.code }).toEqual({ code: 0, trained: 0 });
  expect(stdout).toContain('5 problems of those that the run held out\n');
  const accuracy = /eval\/accuracy: .*→ ([\d.]+)/.exec(trained.stdout)?.[1];
  expect(stdout).toContain(`greedy: ${(100 * Number(accuracy)).toFixed(1)} %`);

  const checkpoint = join(folder, 'run/checkpoint-1');
  const bytes = readFileSync(join(checkpoint, 'model.safetensors'));
  bytes[bytes.length >> 1] ^= 1;
  writeFileSync(join(checkpoint, 'model.safetensors'), bytes);
  const damaged = await script(checkpoint, '--backend', BACKEND);
  expect(damaged).toMatchObject({ code: 2, stderr: expect.stringMatching(/^error: .*model\.safetensors is damaged/) });
  rmSync(folder, { recursive: true });
});

it('asks what a task holds out, by its own rules, as a run of that task did', async () => {
  const flags = ['--eval-size', '4', '--samples', '0', '--max-new-tokens', '8', '--backend', BACKEND];
  const named = await script('models/tiny_countdown', '--task', 'countdown/small', ...flags);
  expect(named).toMatchObject({
    code: 0,
    stderr: '',
    stdout: expect.stringContaining('4 problems of countdown/small\n'),
  });
  const run = mkdtempSync(join(tmpdir(), 'evaluate-'));
  cpSync('models/tiny_countdown', join(run, 'final_model'), { recursive: true });
  const config = (experiment: string, options: object) =>
    writeFileSync(join(run, 'config.json'), JSON.stringify({ experiment, options }));
  config('experiment_base', { task: 'countdown/small' });
  const { options } = await loadPolicy(run, { backend: BACKEND as 'wasm' });
  expect(options.systemPrompt).toBe((await importTask('countdown/small')).systemPrompt);
  expect((await script(run, ...flags)).stdout).toContain('4 problems of those that the run held out\n');
  config('experiment_base', { task: 'countdown/small', systemPrompt: 'My own.' });
  expect((await loadPolicy(run, { backend: BACKEND as 'wasm' })).options.systemPrompt).toBe('My own.');
  const other = await script(run, ...flags, '--dataset', 'tasks/sums/test.jsonl');
  expect(other.stdout).toContain('(judged as by experiment_base: the rules of --task countdown/small');
  config('experiment_fairness', {});
  expect((await script(run, ...flags)).stdout).toContain(
    '(trained by experiment_fairness with prompts and rewards of its own',
  );
  rmSync(run, { recursive: true });
});

it.each([
  [['--dataset', 'nowhere.jsonl'], /^cannot read the data set nowhere\.jsonl \(ENOENT\)/],
  [['lib'], /^lib\/config\.json: there is no such file/],
  [['models/tiny', 'more'], /^unexpected argument 'more'/],
])('refuses %s in a sentence', async (args, sentence) => {
  expect(await refusal('tools/evaluate.ts', [...args, '--backend', BACKEND])).toMatch(sentence);
});

it('refuses what leaves no room for an answer, in a sentence', async () => {
  const { code, stderr } = await script('--max-new-tokens', '300', '--backend', BACKEND);
  expect(stderr).toMatch(/^error: tasks\/sums\/test\.jsonl:1: the prompt has [^\n]+\n$/);
  expect(code).toBe(2);
});
