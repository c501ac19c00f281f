/** The trainer's command line: each option of the README that asked for it, and what it does. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { parseOptions } from '../lib/cli/options.ts';
import { readMetrics } from '../lib/run/metrics.ts';
import { BACKEND } from '../testing/processes.ts';
import { run } from '../testing/script.ts';
import { optionsOf } from './config.ts';
import { configOf, createCommand, createTrainer } from './train.ts';

const temp = mkdtempSync(join(tmpdir(), 'trainer-cli-'));
afterAll(() => rmSync(temp, { recursive: true }));
const script = 'trainer/train.ts';
const parse = (...flags: string[]) => parseOptions(createCommand(), ['node', script, ...flags]);
const runOptions = (...flags: string[]) =>
  optionsOf(configOf(parse(...flags)), { modelName: 'models/tiny', prompts: 160 });

it.each([
  ['--model-name x', {}, 'x'],
  ['--batch-size 2', { batchSize: 8, miniBatchSize: 8, gradientAccumulationSteps: 4 }],
  ['--num-epochs 2', { maxSteps: 20 }], // 160 prompts, 16 a step
  ['--learning-rate 0.5', { learningRate: 0.5 }],
  ['--num-generations 8', { numGenerations: 8, miniBatchSize: 32 }],
  ['--max-new-tokens 9', { maxNewTokens: 9 }],
  ['--kl-coef 0.7', { klCoef: 0.7 }],
  ['--clip-range 0.3', { clipRange: 0.3 }],
  ['--temperature 0.7', { temperature: 0.7 }],
  ['--gradient-accumulation-steps 2', { batchSize: 8, miniBatchSize: 16, gradientAccumulationSteps: 2 }],
  ['--max-grad-norm 3', { maxGradNorm: 3 }],
  ['--warmup-steps 7', { warmupSteps: 7 }],
  ['--output-dir there', { outputDir: 'there' }],
  ['--logging-steps 3', { loggingSteps: 3 }],
  ['--save-steps 11', { saveSteps: 11 }],
  ['--use-wandb', { reportTo: ['wandb'] }],
  ['--wandb-project p', { wandbProject: 'p' }],
  ['--wandb-run-name r', { wandbRunName: 'r' }],
  ['--device cuda', { backend: 'tensorflow' }],
  ['--device cpu', { backend: 'wasm' }],
])('%s is in --help, and reaches the run', (flags, expected, modelName = 'models/tiny') => {
  expect(createCommand().helpInformation()).toContain(flags.split(' ')[0]);
  expect(parse(...flags.split(' ')).modelName).toBe(modelName);
  expect(runOptions(...flags.split(' '))).toMatchObject(expected);
});

const SIZE =
  '--batch-size 2 --gradient-accumulation-steps 2 --max-steps 2 --max-new-tokens 24 --logging-steps 1 --device';
const flags = [...SIZE.split(' '), BACKEND === 'tensorflow' ? 'cuda' : 'cpu'];

it('trains on a file with rewards of a module, goes on, and takes a task', async () => {
  const [prompts, rewards, folder] = ['prompts.jsonl', 'rewards.ts', 'run'].map((name) => join(temp, name));
  const lines = ['1+1', '2+2', '47+38'].map((sum) => JSON.stringify({ prompt: [{ role: 'user', content: sum }], sum }));
  writeFileSync(prompts, lines.join('\n'));
  writeFileSync(
    rewards,
    `type Inputs = { completionIds: number[][]; sum: string[] };
     export const brief = ({ completionIds }: Inputs) => completionIds.map((ids) => -ids.length);
     export const asked = async ({ sum }: Inputs) => sum.map((text) => text.length);`,
  );
  const own = ['--dataset', prompts, '--reward', rewards, '--output-dir', folder, ...flags];
  expect(await run(own, { script })).toMatchObject({ code: 0, stderr: '' });
  expect(await run([...own, '--max-steps', '3', '--resume'], { script })).toMatchObject({ code: 0, stderr: '' });
  const metrics = readMetrics(join(folder, 'metrics.jsonl'));
  expect(metrics.map(({ step }) => step)).toEqual([1, 2, 3]);
  for (const entry of metrics) {
    expect(entry.reward).toBeCloseTo(Number(entry['rewards/brief/mean']) + Number(entry['rewards/asked/mean']), 6);
  }
  expect(readdirSync(join(folder, 'final_model'))).toContain('model.safetensors');

  const summed = join(temp, 'sums');
  const said = await run(['--task', 'sums', '--eval-size', '4', '--output-dir', summed, ...flags], { script });
  expect(said).toMatchObject({ code: 0, stderr: '' });
  expect(said.stdout).toMatch(/eval\/rewards\/rule\/mean: 0\.\d+ → 0\.\d+/);
  const { options } = JSON.parse(readFileSync(join(summed, 'config.json'), 'utf8'));
  expect(options).toMatchObject({ rewardFuncs: ['rule'], klCoef: 0.1 });
});

it.each([
  ['--dataset none.jsonl --reward-model models/tiny_reward', /^cannot read the data set none\.jsonl/],
  ['--reward-model models/tiny_reward', /^there are no prompts: name a file with --dataset, or a --task/],
  ['--dataset tasks/sums/train.jsonl', /^there is no reward: name a module with --reward/],
  ['--dataset tasks/sums/train.jsonl --reward nothing.ts', /^--reward nothing\.ts: there is no such file/],
  ['--dataset tasks/sums/train.jsonl --reward lib/dist/errors.d.ts', /^--reward .* must export a function, found \[\]/],
  [
    '--dataset tasks/sums/train.jsonl --reward-model models/tiny_reward',
    /^tasks\/sums\/train\.jsonl:1: "prompt" must be a text/,
  ],
  ['--task sums --device tpu', /^option '--device <name>' argument 'tpu' is invalid/],
])('refuses %s', async (line, message) => {
  const folder = join(temp, 'refused');
  const start = async () => (await createTrainer(parse('--output-dir', folder, ...line.split(' ')))).train();
  await expect(start()).rejects.toThrow(message);
  expect(existsSync(folder)).toBe(false);
});

it('says what is wrong in one sentence', async () => {
  const { code, stderr, stdout } = await run(['--task', 'sums', '--resume'], { script });
  expect([code, stdout]).toEqual([2, '']);
  expect(stderr).toBe('error: --resume continues the run in --output-dir: name that folder\n');
});
