import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import {
  cases,
  compareWithFormula,
  compareWithPlain,
  dot,
  random,
  range,
  row,
  rowsOf,
  size,
  WITH_KERNELS,
} from '../comparisons.ts';
import { rmsNorm } from './rms_norm.ts';

beforeAll(useBackend);

describe('rmsNorm is its formula, and so is its gradient', () => {
  test.each([
    [1, 1],
    [1, 6],
    [7, 5],
    [16, 64],
  ])('%i × %i', (n, h) =>
    compareWithFormula(
      (x, w) => rmsNorm(x as tf.Tensor2D, w, 0.01),
      (x, w) =>
        range(n).flatMap((i) => {
          const values = row(x, i, h);
          return values.map((value, j) => (w[j] * value) / Math.sqrt(dot(values, values) / h + 0.01));
        }),
      [[n, h], [h]],
    ),
  );
});

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree', async () => {
  for (const key of cases) {
    const width = size(1, key);
    await compareWithPlain(
      (x, w) => rmsNorm(x as tf.Tensor2D, w, 1e-5),
      [random([rowsOf(key), width]), random([width])],
    );
  }
});

test('numbers that are none stay none', async () => {
  const y = rmsNorm(tf.tensor2d([[1, Number.NaN, 2, 3, 4]]), tf.ones([5]), 1e-5);
  expect((await y.data()).some(Number.isNaN)).toBe(true);
});
