/** Without the kernels, whose sums are tested with them: TensorFlow.js' own sum adds one value after the other. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { initBackend } from '../backend/index.ts';
import { normals } from '../random.ts';
import { blockSum } from './block_sum.ts';
import { tokenLogProbs } from './token_log_probs/token_log_probs.ts';

beforeAll(() => initBackend('wasm', { kernels: 'off' }));

test.each([
  [[3, 1], 1e-7],
  [[2, 2, 7], 1e-7],
  [[0, 5], 0],
  [[16], 1e-7],
  [[2, 151_936], 1e-6],
])('blockSum of shape %j', async (shape, tolerance) => {
  const values = normals(tf.util.sizeFromShape(shape), 5, shape.length).map(Math.exp);
  const length = shape.at(-1)!;
  const sum = blockSum(tf.tensor(values, shape));
  expect(sum.shape).toEqual(shape.slice(0, -1));
  (await sum.data()).forEach((actual, row) => {
    const expected = values.slice(row * length, (row + 1) * length).reduce((total, x) => total + x, 0);
    expect(Math.abs(actual / expected - 1)).toBeLessThanOrEqual(tolerance);
  });
});

test.each([0.01, 1, 3])('a vocabulary of 151,936, against float64; logits up to about 4 × %d', async (spread) => {
  const vocabulary = 151_936;
  const [hidden, tokens, dy] = [[1, -0.7], Int32Array.of(5, vocabulary - 1), [1, -0.5, 0.3, -0.2]];
  const head = Float32Array.from(normals(vocabulary, 7, 3), (x) => x * spread);
  const op = (hidden: tf.Tensor, head: tf.Tensor) => tokenLogProbs(hidden as tf.Tensor2D, head, tokens);
  const inputs = [tf.tensor2d(hidden, [2, 1]), tf.tensor2d(head, [vocabulary, 1])];
  const value = await op(inputs[0], inputs[1]).data();
  const gradient = await tf
    .grads(op)(inputs, tf.tensor2d(dy, [2, 2]))[1]
    .data();

  const expected = new Float64Array(vocabulary);
  for (const [row, x] of hidden.entries()) {
    const logits = Float64Array.from(head, (weight) => Math.fround(Math.fround(x) * weight));
    const logSum = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
    const entropy = logSum - logits.reduce((sum, logit) => sum + Math.exp(logit - logSum) * logit, 0);
    expect(Math.abs(value[row] - (logits[tokens[row]] - logSum))).toBeLessThan(5e-6);
    expect(Math.abs(value[2 + row] - entropy)).toBeLessThan(2e-5);
    for (const [token, logit] of logits.entries()) {
      const p = Math.exp(logit - logSum);
      const chosen = token === tokens[row] ? 1 : 0;
      expected[token] += x * (dy[row] * (chosen - p) - dy[2 + row] * p * (logit - logSum + entropy));
    }
  }
  for (const [token, x] of expected.entries()) {
    const error = Math.abs(gradient[token] - x) / (Math.abs(x) + 1 / vocabulary);
    if (!(error < 2e-5)) expect.fail(`gradient of token ${token}: expected ${x}, found ${gradient[token]}`);
  }
});
