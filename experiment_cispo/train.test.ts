import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import { useBackend } from '../testing/backend.ts';
import { distance } from '../testing/distance.ts';
import { absent, expectTrlLoss, smallBatch, tokensOf, trlCases, valueAndGradient } from '../testing/trl_losses.ts';
import { cispoLoss } from './train.ts';

beforeAll(useBackend);

describe(`the loss is TRL's${absent}`, () => {
  const cases = trlCases((c) => c.loss_type === 'cispo');
  if (cases.length === 0) it.skip('nothing to compare with', () => {});
  it.each(cases)('%s', (_, c) => {
    // TRL's ε is where the weight is cut; the paper's, and ours, how far above 1 that is.
    const options = { clipRangeHigh: c.epsilon_high - 1, klCoef: c.beta, tokens: tokensOf(c) };
    expectTrlLoss(c, (inputs) => cispoLoss(inputs, options));
  });
});

describe('cispoLoss', () => {
  it('on-policy has the gradient of REINFORCE: −A for each token, over all tokens', () => {
    const { logProbs, refLogProbs, ...rest } = smallBatch();
    const inputs = { ...rest, logProbs, oldLogProbs: logProbs.clone() };
    const [, gradient] = valueAndGradient((x) => cispoLoss(x, { clipRangeHigh: 0.2, klCoef: 0, tokens: 6 }), inputs);
    const [advantages, mask] = [[1.2, -0.7, -0.5], Array.from(rest.mask.dataSync())];
    expect(
      distance(
        gradient,
        mask.map((m, i) => (-m * advantages[Math.floor(i / 4)]) / 6),
      ),
    ).toBeLessThan(1e-6);
  });

  it('cuts the weight of a token and not the token: its gradient stays', () => {
    const row = (values: number[]) => tf.tensor2d([values]);
    const inputs = {
      ...{ logProbs: row([-1, -1]), oldLogProbs: row([-1 - Math.log(3), -1 + Math.log(2)]), mask: row([1, 1]) }, // ρ = 3, 0.5
      advantages: tf.tensor2d([[2]]),
    };
    const [, gradient] = valueAndGradient((x) => cispoLoss(x, { clipRangeHigh: 0.2, klCoef: 0, tokens: 2 }), inputs);
    expect(gradient).toEqual([expect.closeTo(-1.2, 6), expect.closeTo(-0.5, 6)]);
  });
});
