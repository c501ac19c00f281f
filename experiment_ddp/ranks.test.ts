import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type BackendName, initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { shard } from '../lib/distributed/communicator.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { uniform } from '../lib/random.ts';
import { refusal, runScript } from '../testing/mains.ts';
import { writeTestData, writeTestModel } from '../testing/model.ts';
import { MPI, mpirun, withMpi } from '../testing/mpi.ts';
import { BACKEND, NODE, results, runProcess } from '../testing/processes.ts';
import { createCommand, type Draw, type Rollout, rollout } from './train.ts';

// Whole runs, most of them in the process of the test.
vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));
vi.mock('../lib/cli/ranks.ts', () => import('../testing/ranks.ts'));
vi.mock('../lib/run/interrupt.ts', () => ({
  onInterrupt: () => ({ requested: () => false, dispose: () => {} }), // signals of this process are those of the tests
  sayOnInterrupt: () => () => {},
}));

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
const at = (name: string) => join(temp, name);
afterAll(() => rmSync(temp, { recursive: true, force: true }));
beforeAll(async () => void (await initBackend(BACKEND as BackendName)));

it('a rank samples for its problems what a single process samples for them', async () => {
  await writeTestModel(at('model'));
  writeTestData(at('data.jsonl'), 12);
  const model = await loadCheckpoint(at('model'));
  const tokenizer = await loadTokenizer(at('model'));
  const flags = ['--num-generations', '4', '--max-new-tokens', '16'];
  const options = parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
  const problems = loadProblems(at('data.jsonl')).slice(0, 5);
  const draw: Draw = (...token) => uniform(0, 3, ...token);
  const whole = await rollout(model, tokenizer, problems, draw, options);
  const parts = [0, 1, 2].map((rank) => shard({ rank, size: 3 }, problems.length));
  const sharded = parts.map(({ begin, end }) => {
    const own: Draw = (problem, ...token) => draw(begin + problem, ...token);
    return rollout(model, tokenizer, problems.slice(begin, end), own, options);
  });
  // Not to the last bit: log-probs are rounded by what else is in the batch.
  const essence = (rows: Rollout[]) => rows.map(({ problem, completion, reward }) => ({ problem, completion, reward }));
  expect(essence((await Promise.all(sharded)).flat())).toEqual(essence(whole));
});

describe('any number of ranks: the completions and metrics of experiment_base', () => {
  // The bundled model: with a random one, whose rewards are rare, Adam would make updates of what is only rounding.
  const WORK =
    `--backend ${BACKEND} --eval-size 4 --max-steps 3 --batch-size 5 --num-generations 4 --mini-batch-size 10 --kl-coef 0.05 --eval-steps 2`.split(
      ' ',
    );
  const ADAPTER = ['--lora-rank', '4', '--learning-rate', '0.001'];
  const SCRIPT = 'experiment_ddp/train.ts';
  const ddp = [...WORK, '--check-sync-steps', '1'];
  beforeAll(async () => {
    await runScript('experiment_base/train.ts', [...WORK, '--output-dir', at('base')]);
    await runScript('experiment_base/train.ts', [...WORK, ...ADAPTER, '--output-dir', at('base, adapted')]);
  });

  const LOG_PROBS = /"log_probs":\[([^\]]*)\]/g;
  const expectSame = (name: string, reference = 'base') => {
    const [found, expected] = [results(at(name)), results(at(reference))];
    // The log-probs of tokens have three digits, of which what else is in the batch may change the last.
    const texts = ({ completions }: { completions: string }) => completions.replace(LOG_PROBS, '');
    const logProbs = ({ completions }: { completions: string }) =>
      [...completions.matchAll(LOG_PROBS)].flatMap(([, list]) => list.split(',').map(Number));
    expect(texts(found)).toBe(texts(expected));
    const others = logProbs(expected);
    const differences = logProbs(found).map((logProb, i) => Math.abs(logProb - others[i]));
    expect(Math.max(...differences)).toBeLessThan(0.0011);
    expect(found.metrics.map((row) => Object.keys(row))).toEqual(expected.metrics.map((row) => Object.keys(row)));
    for (const [i, row] of expected.metrics.entries()) {
      for (const [metric, value] of Object.entries(row)) {
        if (typeof value !== 'number') expect(found.metrics[i][metric]).toEqual(value);
        else {
          const difference = Math.abs((found.metrics[i][metric] as number) - value);
          expect(difference, `${metric}, step ${i}`).toBeLessThan(1e-5 * Math.max(1, Math.abs(value)));
        }
      }
    }
    // Else this would show nothing: completions are of unequal lengths, and the policy moves.
    const lengths = expected.completions.matchAll(/"tokens":(\d+)/g);
    expect(new Set([...lengths].map(([, length]) => length)).size).toBeGreaterThan(2);
    expect(expected.metrics.slice(1).every(({ grad_norm }) => Number(grad_norm) > 0)).toBe(true);
  };
  const runRanks = async (name: string, command: string[], flags: string[] = []) => {
    const line = [...command, ...NODE, SCRIPT, ...ddp, ...flags, '--output-dir', at(name)];
    expect(await runProcess(line, { env: MPI })).toMatchObject({ code: 0, stderr: '' });
  };

  it.each([1, 2, 3, 5])('%d', async (count) => {
    await runScript(SCRIPT, [...ddp, '--nproc', String(count), '--output-dir', at(`${count}`)]);
    expectSame(`${count}`);
  });

  it('2, with an adapter, as processes', async () => {
    await runRanks('adapted', [], [...ADAPTER, '--nproc', '2']);
    expectSame('adapted', 'base, adapted');
  });

  withMpi('2 below mpirun', async () => {
    await runRanks('mpi', mpirun(2));
    expectSame('mpi');
  });
});

describe('bad input is refused', () => {
  it.each([
    ['unknown option', ['--nprocs', '2'], /unknown option '--nprocs'.*Did you mean --nproc\?/],
    ['no rank', ['--nproc', '0'], /--nproc.*from 1 to/],
    ['more ranks than prompts', ['--nproc', '64'], /--nproc 64 is more than the 32 prompts of a step/],
    ['missing data set', ['--dataset', 'none.jsonl'], /cannot read the data set .*none\.jsonl/],
    ['missing model', ['--model-name', at('none')], /none/],
    ['updates that do not divide', ['--mini-batch-size', '7'], /must divide into updates of 7/],
  ])('%s', async (name, flags, message) => {
    const folder = at(`refused ${name}`);
    const line = ['--backend', BACKEND, '--output-dir', folder, ...flags];
    expect(await refusal('experiment_ddp/train.ts', line)).toMatch(message);
    expect(existsSync(folder)).toBe(false);
  });
});
