import { beforeAll, describe, expect, it } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { useBackend } from '../testing/backend.ts';
import { type During, lastStep, results, until } from '../testing/processes.ts';
import { at, run, SHORT } from '../testing/script.ts';
import { absent, expectTrlLoss, smallBatch, tokensOf, trlCases, valueAndGradient } from '../testing/trl_losses.ts';
import { createCommand, grpoLoss, type Options, overlongPenalty, type Rollout, sampleUseful } from './train.ts';

beforeAll(useBackend);

const optionsOf = (flags = ''): Options =>
  parseOptions(createCommand(), ['node', 'train.ts', ...flags.split(' ').filter(Boolean)]);

describe(`the loss is TRL's${absent}`, () => {
  const cases = trlCases((c) => ['dapo', 'bnpo'].includes(c.loss_type) && c.importance_sampling_level === 'token');
  if (cases.length === 0) it.skip('nothing to compare with', () => {});
  it.each(cases)('%s', (_, c) => {
    const [completions, tokens] = [c.advantages.length, tokensOf(c)];
    const clip = { clipRange: c.epsilon_low, clipRangeHigh: c.epsilon_high };
    expectTrlLoss(c, (x) => grpoLoss(x, { ...clip, klCoef: c.beta, completions, tokens }));
  });
});

describe('without its four parts it is GRPO', () => {
  it('the loss, to the last bit', () => {
    const options = { clipRange: 0.2, clipRangeHigh: 0.2, klCoef: 0.04, completions: 3 };
    const own = valueAndGradient((x) => grpoLoss(x, options), smallBatch());
    expect(own).toEqual(valueAndGradient((x) => base.grpoLoss(x, options), smallBatch()));
  });

  it('and what is sampled', async () => {
    const asked: number[] = [];
    const flat = [0, 0, 0, 0].map((reward) => ({ reward }) as Rollout);
    const sample = async (round: number) => {
      asked.push(round);
      return flat;
    };
    const result = await sampleUseful(sample, { ...optionsOf('--max-resamples 0'), numGenerations: 2 });
    expect([result, asked]).toEqual([{ rollouts: flat, resampled: [] }, [0]]);
  });
});

describe('overlongPenalty', () => {
  it.each([
    [10, 0],
    [24, 0],
    [26, 0.25],
    [28, 0.5],
    [32, 1],
  ])('of %d tokens of 32, the last 8 of which cost: %d', (length, penalty) => {
    expect(overlongPenalty(length, optionsOf('--overlong-cache 8'))).toBe(penalty);
  });

  it('of a cache of 0 is nothing', () => expect(overlongPenalty(32, optionsOf('--overlong-cache 0'))).toBe(0));
});

describe('sampleUseful', () => {
  /** Groups of two with these rewards. */
  const groupsOf = (rewards: number[][]) => rewards.flat().map((reward) => ({ reward }) as Rollout);

  it('replaces flat groups, and only those, until none is left', async () => {
    const rounds = [
      [
        [0, 1],
        [1, 1],
        [0, 0],
      ],
      [
        [0, 0],
        [1, 0],
      ],
      [[1, 0.1]],
    ];
    const asked: number[] = [];
    const sample = async (round: number, count: number) => {
      asked.push(count);
      return groupsOf(rounds[round]);
    };
    const options = { ...optionsOf('--batch-size 3'), numGenerations: 2 };
    const { rollouts, resampled } = await sampleUseful(sample, options);
    expect(rollouts.map(({ reward }) => reward)).toEqual([0, 1, 1, 0.1, 1, 0]);
    expect(asked).toEqual([3, 2, 1]);
    expect(resampled.map(({ reward }) => reward)).toEqual([1, 1, 0, 0, 0, 0]);
  });

  it('gives up after --max-resamples rounds: the batch is full all the same', async () => {
    let rounds = 0;
    const sample = async (_: number, count: number) => {
      rounds++;
      return groupsOf(new Array(count).fill([0, 0]));
    };
    const options = { ...optionsOf('--batch-size 3 --max-resamples 2'), numGenerations: 2 };
    const { rollouts, resampled } = await sampleUseful(sample, options);
    expect([rollouts.length, resampled.length / 2, rounds]).toEqual([6, 6, 3]);
  });
});

it('a run that is killed (-9) and resumed ends as if it never was, with what it sampled in vain', async () => {
  const flags = [...SHORT, '--save-steps', '2', '--max-steps', '6'];
  const [whole, killed] = ['dapo whole', 'dapo killed'].map((name) => at(name));
  const train = (args: string[], during?: During) => run(args, { script: 'experiment_dapo/train.ts', during });
  expect(await train([...flags, '--output-dir', whole])).toMatchObject({ code: 0, stderr: '' });
  const kill: During = async (child, ended) => {
    await until(() => lastStep(killed) >= 3, ended);
    child.kill('SIGKILL');
  };
  expect(await train([...flags, '--output-dir', killed], kill)).toMatchObject({ signal: 'SIGKILL' });
  expect(await train(['--resume', killed])).toMatchObject({ code: 0, stderr: '' });
  expect(results(killed)).toEqual(results(whole));
  const resampled = results(whole).metrics.map((entry) => entry['sampling/resampled_groups']);
  expect(resampled.some((groups) => Number(groups) > 0)).toBe(true);
});
