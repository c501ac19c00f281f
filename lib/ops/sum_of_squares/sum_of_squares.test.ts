import type * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, random, size } from '../comparisons.ts';
import { sumOfSquares } from './sum_of_squares.ts';

beforeAll(useBackend);

const squares = async (x: tf.Tensor) => Array.from(await x.data()).reduce((sum, value) => sum + value * value, 0);

test('is the sum of squares, of any shapes and of however many tensors', async () => {
  const one = [[1], [70_000], ...cases.map((key) => [size(1, key), 100 * size(2, key)])].map((shape) => [
    random(shape),
  ]);
  // Of many tensors: more than a call takes, and some without elements.
  const many = cases.map((key) =>
    Array.from({ length: 1 + (key % 17) }, (_, i) =>
      random((i + key) % 5 === 0 ? [0, 3] : [size(i, key), size(3, key, i)]),
    ),
  );
  for (const tensors of [...one, ...many]) {
    const expected = (await Promise.all(tensors.map(squares))).reduce((sum, value) => sum + value);
    const sum = sumOfSquares(tensors);
    expect(sum.shape).toEqual([]);
    // A row of 70,000 is one sum on wasm.
    expect(Math.abs((await sum.data())[0] - expected)).toBeLessThanOrEqual(5e-6 * expected);
  }
});
