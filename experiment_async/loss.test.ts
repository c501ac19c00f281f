import * as tf from '@tensorflow/tfjs';
import { describe, expect, it } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { logProbsOf } from '../lib/training/log_probs.ts';
import { model, sample } from '../testing/policy.ts';
import { jobsAfter, lagging, mayBegin, versionsOf } from './sampling.ts';
import { stalenessMetrics } from './timeline.ts';
import { createCommand, grpoLoss, importanceWeights, lossInputs, type OffPolicy, toExperience } from './train.ts';

const optionsOf = (...flags: string[]) => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
const small = optionsOf(...'--num-generations 4 --max-new-tokens 12'.split(' '));

describe('importance weights', () => {
  const prox = [-1, -2, -0.5];
  const behavior = [-1.5, -1, -0.5];
  const weigh = (
    importanceSampling: OffPolicy['importanceSampling'],
    importanceLevel: OffPolicy['importanceLevel'],
    importanceCap = 1.2,
  ) => importanceWeights(prox, behavior, { importanceSampling, importanceLevel, importanceCap });

  it.each([
    ['truncated', 'token', [1.2, Math.exp(-1), 1]],
    ['masked', 'token', [0, Math.exp(-1), 1]],
    ['none', 'token', [1, 1, 1]],
    ['truncated', 'sequence', new Array(3).fill(Math.exp(-0.5))], // 0.5 - 1 + 0
    ['masked', 'sequence', new Array(3).fill(Math.exp(-0.5))],
  ] as const)('%s, of a %s', (kind, level, expected) => {
    const { weights, ratios } = weigh(kind, level);
    for (const [t, weight] of weights.entries()) expect(weight).toBeCloseTo(expected[t], 12);
    expect(ratios[0]).toBeCloseTo(level === 'token' ? Math.exp(0.5) : Math.exp(-0.5), 12);
  });

  it('of a sequence are cut, too', () => {
    expect(weigh('truncated', 'sequence', 1).weights[0]).toBeCloseTo(Math.exp(-0.5), 12);
    const longer = importanceWeights([-1, -1], [-2, -2], {
      importanceSampling: 'masked',
      importanceLevel: 'sequence',
      importanceCap: 2,
    });
    expect(longer.weights).toEqual([0, 0]);
  });

  it('are all 1 where the policy itself has sampled', () => {
    for (const kind of ['none', 'truncated', 'masked'] as const) {
      expect(
        importanceWeights(behavior, behavior, { importanceSampling: kind, importanceLevel: 'token', importanceCap: 1 })
          .weights,
      ).toEqual([1, 1, 1]);
    }
  });
});

describe('the loss', () => {
  const tensors = (weights: number[][]) => ({
    oldLogProbs: tf.tensor2d([
      [-1, -1],
      [-2, 0],
    ]),
    weights: tf.tensor2d(weights),
    advantages: tf.tensor2d([[1], [-0.5]]),
    mask: tf.tensor2d([
      [1, 1],
      [1, 0],
    ]),
  });
  const options = { clipRange: 0.2, clipRangeHigh: 0.2, klCoef: 0, completions: 2 };

  it('by hand: each token of the clipped surrogate, times its weight', () => {
    // Ratios 1.1 and 1.5 (clipped to 1.2) with A = 1; 0.9 with A = −0.5.
    const logProbs = tf.tensor2d([
      [-1 + Math.log(1.1), -1 + Math.log(1.5)],
      [-2 + Math.log(0.9), 0],
    ]);
    const loss = grpoLoss(
      {
        logProbs,
        ...tensors([
          [2, 0.5],
          [0.25, 0],
        ]),
      },
      options,
    ).dataSync()[0];
    expect(loss).toBeCloseTo((-(2 * 1.1 + 0.5 * 1.2) / 2 + 0.25 * 0.9 * 0.5) / 2, 6);
  });

  it('has the gradient of finite differences', () => {
    const values = [
      [-0.95, -1.1],
      [-1.9, 0],
    ];
    const inputs = tensors([
      [2, 0.5],
      [0.25, 0],
    ]);
    const lossAt = (x: tf.Tensor) => grpoLoss({ logProbs: x as tf.Tensor2D, ...inputs }, options);
    const gradient = tf.grad(lossAt)(tf.tensor2d(values)).arraySync() as number[][];
    for (const [i, t] of [
      [0, 0],
      [0, 1],
      [1, 0],
    ]) {
      const moved = (by: number) =>
        lossAt(tf.tensor2d(values.map((row, r) => row.map((x, c) => (r === i && c === t ? x + by : x))))).dataSync()[0];
      expect(gradient[i][t]).toBeCloseTo((moved(1e-2) - moved(-1e-2)) / 2e-2, 3);
    }
    expect(gradient[1][1]).toBe(0);
  });

  it.each(['none', 'truncated', 'masked'] as const)(
    "is base's to the bit where the policy itself has sampled (%s)",
    async (importanceSampling) => {
      const rollouts = await sample(small);
      const own = await toExperience(
        { rollouts, switches: [[0, 6]] },
        { policy: model, reference: undefined, step: 7 },
        { ...small, importanceSampling },
      );
      const theirs = await base.toExperience(rollouts, undefined, small);
      const width = Math.max(...rollouts.map(({ completion }) => completion.length));
      const logProbs = tf.tensor2d(
        rollouts.map(({ oldLogProbs }) =>
          Array.from({ length: width }, (_, t) => (oldLogProbs[t] ?? 0) + 0.1 * Math.sin(t)),
        ),
      );
      const all = { ...small, completions: rollouts.length };
      const [mine, expected] = [
        grpoLoss(lossInputs(logProbs, own), all),
        base.grpoLoss(base.lossInputs(logProbs, theirs), all),
      ];
      expect(mine.dataSync()[0]).toBe(expected.dataSync()[0]);
      expect(own.flatMap(({ versions }) => versions).every((version) => version === 6)).toBe(true);
    },
  );
});

it('a stale batch is told from the policy that it trains: π_prox is computed, μ is what the sampler recorded', async () => {
  const rollouts = (await sample(small)).map((rollout) => ({
    ...rollout,
    oldLogProbs: rollout.oldLogProbs.map((x) => x - 0.1),
  }));
  const experience = await toExperience(
    {
      rollouts,
      switches: [
        [0, 2],
        [3, 5],
      ],
    },
    { policy: model, reference: undefined, step: 7 },
    small,
  );
  const computed = await logProbsOf(model, rollouts, small);
  for (const [i, { oldLogProbs, ratios, versions }] of experience.entries()) {
    expect(oldLogProbs).toEqual(computed[i]);
    for (const ratio of ratios) expect(ratio).toBeCloseTo(Math.exp(0.1), 4);
    expect(versions).toEqual(oldLogProbs.map((_, t) => (t < 3 ? 2 : 5)));
  }
  const metrics = stalenessMetrics(experience, 7, small);
  expect(metrics['staleness/max']).toBe(4);
  expect(metrics['importance/ess']).toBeCloseTo(1, 6);
  expect(metrics['importance/mean']).toBeCloseTo(Math.exp(0.1), 4);
});

it('the effective sample size is what unequal weights leave of the tokens', () => {
  const row = { versions: [0, 0], ratios: [3, 1] } as never;
  expect(stalenessMetrics([row], 1, small)).toMatchObject({
    'importance/ess': expect.closeTo(16 / 10 / 2, 9),
    'importance/clipped_ratio': 0.5,
  });
});

describe('who samples when', () => {
  it('each token has the version that was there at its position', () => {
    expect(versionsOf([[0, 3]], 3)).toEqual([3, 3, 3]);
    expect(
      versionsOf(
        [
          [0, 3],
          [2, 4],
          [9, 5],
        ],
        4,
      ),
    ).toEqual([3, 3, 4, 4]);
  });

  it('a lag is so many steps, and less at the start, and after a resume', () => {
    expect([8, 9, 10, 11].map((step) => lagging(2, 7)(step).switches[0][1])).toEqual([7, 7, 7, 8]);
    const plan = lagging(2);
    expect([1, 2, 3, 4, 5].map((step) => plan(step).switches)).toEqual([
      [[0, 0]],
      [[0, 0]],
      [[0, 0]],
      [[0, 1]],
      [[0, 2]],
    ]);
  });

  it('a run that goes on has the batches that were lost, and none twice', () => {
    const jobs = jobsAfter([1, 2, 4, 5, 8]);
    expect([1, 2, 3, 4].map(() => jobs.next().value)).toEqual([3, 6, 7, 9]);
  });

  it.each([
    // outstanding, is training, unpublished, k
    [0, false, 0, 0, true],
    [0, true, 0, 0, false],
    [1, false, 0, 0, false],
    [0, true, 0, 1, true],
    [1, true, 0, 1, false],
    [1, true, 0, 2, true],
    [1, true, 1, 2, false],
    [0, false, Number.POSITIVE_INFINITY, 9, false],
  ])(
    'with %d outstanding, training %s, %d unpublished and k = %d, another batch may begin: %s',
    (outstanding, isTraining, unpublished, k, may) => {
      expect(mayBegin({ outstanding, isTraining, unpublished }, k)).toBe(may);
    },
  );
});
