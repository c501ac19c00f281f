import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { uniform } from '../../random.ts';
import { sum } from '../../statistics.ts';
import {
  cases,
  compareWithFormula,
  compareWithPlain,
  dot,
  expectClose,
  random,
  range,
  row,
  rowsOf,
  size,
  WITH_KERNELS,
} from '../comparisons.ts';
import { tokenLogProbs } from './token_log_probs.ts';

beforeAll(useBackend);

describe('tokenLogProbs is its formula, and so is its gradient', () => {
  test.each([
    { count: 1, width: 1, vocabulary: 2, temperature: 1 },
    { count: 7, width: 5, vocabulary: 11, temperature: 0.7 },
    { count: 7, width: 5, vocabulary: 11, temperature: 1.7, maxLogits: 2 * 11 },
    { count: 3, width: 3, vocabulary: 5, temperature: 1.3, maxLogits: 1 },
  ])('%o', ({ count, width, vocabulary, temperature, maxLogits }) => {
    const tokens = Int32Array.from(range(count), (i) => (3 * i + 1) % vocabulary);
    return compareWithFormula(
      (hidden, head) => tokenLogProbs(hidden as tf.Tensor2D, head, tokens, { temperature, maxLogits }),
      (hidden, head) => {
        const logProbs = range(count).map((i) => {
          const logits = range(vocabulary).map((v) => dot(row(hidden, i, width), row(head, v, width)) / temperature);
          const logSum = Math.log(sum(logits.map(Math.exp)));
          return logits.map((logit) => logit - logSum);
        });
        const chosen = logProbs.map((values, i) => values[tokens[i]]);
        const entropies = logProbs.map((values) => -sum(values.map((logProb) => Math.exp(logProb) * logProb)));
        return [...chosen, ...entropies];
      },
      [
        [count, width],
        [vocabulary, width],
      ],
    );
  });

  test('huge logits stay finite, and so does their gradient', async () => {
    const tokens = Int32Array.of(0, 1);
    const head = tf.tensor2d([1e4, -1e4, 0], [3, 1]);
    const op = (hidden: tf.Tensor) => tokenLogProbs(hidden as tf.Tensor2D, head, tokens);
    const hidden = tf.ones([2, 1]);
    expectClose(await op(hidden).data(), [0, -2e4, 0, 0]);
    expectClose(await tf.grad(op)(hidden).data(), [0, -2e4]);
  });
});

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree, in one chunk and in several', async () => {
  for (const key of cases) {
    const [count, width, vocabulary] = [rowsOf(key), size(1, key), (key % 5 ? 1 : 1200) + size(2, key)];
    const tokens = Int32Array.from({ length: count }, (_, i) => Math.floor(vocabulary * uniform(11, key, i)));
    const options = { temperature: key % 2 ? 1 : 0.7, maxLogits: key % 3 ? 100 : 2 ** 20 };
    const op = (x: tf.Tensor, head: tf.Tensor) => tokenLogProbs(x as tf.Tensor2D, head, tokens, options);
    await compareWithPlain(op, [random([count, width]), random([vocabulary, width])]);
  }
});

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree on large logits at a low temperature', async () => {
  const head = random([70, 8]);
  const tokens = Int32Array.from({ length: 5 }, (_, i) => 14 * i);
  const op = (x: tf.Tensor, head: tf.Tensor) => tokenLogProbs(x as tf.Tensor2D, head, tokens, { temperature: 0.05 });
  await compareWithPlain(op, [tf.mul(random([5, 8]), 30), head]);
});

test('a token that the vocabulary lacks is refused', () => {
  const outside = () => tokenLogProbs(tf.ones([1, 8]), tf.ones([70, 8]), Int32Array.of(70));
  expect(outside).toThrow(/token 70 is outside/);
});

test('numbers that are none stay none', async () => {
  const head = tf.tensor2d([
    [1, Number.NaN],
    [2, 3],
  ]);
  const values = tokenLogProbs(tf.ones([1, 2]), head, Int32Array.of(0));
  expect((await values.data()).some(Number.isNaN)).toBe(true);
});
