import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { useBackend } from '../testing/backend.ts';
import { distance } from '../testing/distance.ts';
import { smallBatch, valueAndGradient } from '../testing/trl_losses.ts';
import { groupAdvantages, rlooLoss, statistics } from './train.ts';

beforeAll(useBackend);

const OPTIONS = { clipRange: 0.2, klCoef: 0, completions: 3 };

describe('groupAdvantages', () => {
  it('are rewards above the mean of the others', () => {
    const groups = [
      [1, 2, 3],
      [4, 5, 6],
    ];
    expect(groupAdvantages(groups)).toEqual([
      [-1.5, 0, 1.5],
      [-1.5, 0, 1.5],
    ]);
    expect(groupAdvantages([[1, 0, 0, 0]])[0].map((a) => a.toFixed(4))).toEqual([
      '1.0000',
      ...Array(3).fill('-0.3333'),
    ]);
  });

  it('of a flat group are exactly zero; of a group of one are refused', () => {
    expect(groupAdvantages([[0.1, 0.1, 0.1]])).toEqual([[0, 0, 0]]);
    expect(() => groupAdvantages([[1]])).toThrow(RangeError);
  });
});

describe('rlooLoss', () => {
  it('on-policy has the gradient of REINFORCE: −A for each token, over the completions', () => {
    const { logProbs, ...inputs } = smallBatch();
    const [loss, gradient] = valueAndGradient((x) => rlooLoss(x, OPTIONS), {
      ...inputs,
      logProbs,
      oldLogProbs: logProbs.clone(),
    });
    const [advantages, mask] = [[1.2, -0.7, -0.5], Array.from(inputs.mask.dataSync())];
    expect(loss).toBeCloseTo(0, 6);
    expect(
      distance(
        gradient,
        mask.map((m, i) => (-m * advantages[Math.floor(i / 4)]) / 3),
      ),
    ).toBeLessThan(1e-6);
  });

  it('of completions of one token is the clipped surrogate of GRPO', () => {
    const { refLogProbs, ...inputs } = smallBatch(1);
    const own = valueAndGradient((x) => rlooLoss(x, OPTIONS), inputs);
    expect(own).toEqual(valueAndGradient((x) => base.grpoLoss(x, OPTIONS), inputs));
  });

  it('clips a completion as a whole: its ratio is the product of its tokens’ ratios', async () => {
    const row = (values: number[]) => tf.tensor2d([values]);
    const inputs = {
      ...{ logProbs: row([-1, -1, -1]), oldLogProbs: row([-1.1, -1.1, -1.1]), mask: row([1, 1, 1]) }, // ρ = e^0.3 > 1.2
      advantages: tf.tensor2d([[2]]),
    };
    const [loss, gradient] = valueAndGradient((x) => rlooLoss(x, { ...OPTIONS, completions: 1 }), inputs);
    expect([loss, gradient]).toEqual([expect.closeTo(-2.4, 6), [0, 0, 0]]);
    const sums = statistics(inputs, tf.zeros([1, 3]), OPTIONS);
    expect((await sums['clip_ratio/high_mean'].data())[0]).toBe(3); // all three tokens
  });
});
