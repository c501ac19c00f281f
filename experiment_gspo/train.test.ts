import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { useBackend } from '../testing/backend.ts';
import { distance } from '../testing/distance.ts';
import { absent, expectTrlLoss, smallBatch, tokensOf, trlCases, valueAndGradient } from '../testing/trl_losses.ts';
import { createCommand, gspoLoss, sequenceRatio, statistics } from './train.ts';

beforeAll(useBackend);

it('clips where the paper does', () => {
  const options = parseOptions(createCommand(), ['node', 'train.ts']);
  expect([options.clipRange, options.clipRangeHigh]).toEqual([3e-4, 4e-4]);
});

describe(`the ratio and its clipping are TRL's${absent}`, () => {
  const cases = trlCases((c) => c.importance_sampling_level === 'sequence' && c.beta === 0);
  if (cases.length === 0) it.skip('nothing to compare with', () => {});
  it.each(cases)('%s', (_, c) => {
    // TRL weighs a completion by its tokens here, and divides by all tokens or by a constant; ours are equally weighted.
    // The surrogate is proportional to the advantage, which can take up the difference.
    const lengths = c.completion_mask.map((row) => row.filter(Boolean).length);
    const divisor = c.loss_type === 'bnpo' ? tokensOf(c) / lengths.length : c.max_completion_length;
    const advantages = c.advantages.map((a, i) => (a * lengths[i]) / divisor);
    const options = { clipRange: c.epsilon_low, clipRangeHigh: c.epsilon_high, klCoef: 0, completions: lengths.length };
    expectTrlLoss(c, (inputs) => gspoLoss(inputs, options), advantages);
  });
});

describe('gspoLoss', () => {
  const OPTIONS = { clipRange: 0.2, clipRangeHigh: 0.2, klCoef: 0.04, completions: 3 };

  it('of completions of one token is that of GRPO', () => {
    const inputs = smallBatch(1);
    const own = valueAndGradient((x) => gspoLoss(x, OPTIONS), inputs);
    expect(own).toEqual(valueAndGradient((x) => base.grpoLoss(x, OPTIONS), inputs));
  });

  it('on-policy has the gradient of GRPO, whatever the lengths', () => {
    const { logProbs, ...rest } = smallBatch();
    const inputs = { ...rest, logProbs, oldLogProbs: logProbs.clone() };
    const [[loss, gradient], [, its]] = [gspoLoss, base.grpoLoss].map((f) =>
      valueAndGradient((x) => f(x, OPTIONS), inputs),
    );
    expect(distance(gradient, its)).toBeLessThan(1e-6);
    expect([Number.isFinite(loss), gradient.some((g) => Math.abs(g) > 0.1)]).toEqual([true, true]);
  });

  it('has one ratio for a completion: the geometric mean of its tokens’ ratios', () => {
    const row = (values: number[]) => tf.tensor2d([values]);
    const inputs = {
      ...{ logProbs: row([-1, -1, -9]), oldLogProbs: row([-1.3, -1.1, -1]), mask: row([1, 1, 0]) },
      advantages: tf.tensor2d([[1]]),
    };
    expect(sequenceRatio(inputs).dataSync()[0]).toBeCloseTo(Math.exp(0.2), 6);
    const sums = statistics(inputs, tf.zeros([1, 3]), OPTIONS);
    expect(sums['clip_ratio/high_mean'].dataSync()[0]).toBe(2); // both tokens
  });
});
