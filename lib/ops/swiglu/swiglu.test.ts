import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, compareWithFormula, compareWithPlain, random, rowsOf, size, WITH_KERNELS } from '../comparisons.ts';
import { swiGlu } from './swiglu.ts';

beforeAll(useBackend);

test.each([
  [1, 1],
  [5, 7],
])('is its formula, and so is its gradient: %i × %i', (n, f) =>
  compareWithFormula(
    (gate, up) => swiGlu(gate as tf.Tensor2D, up as tf.Tensor2D),
    (gate, up) => gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]),
    [
      [n, f],
      [n, f],
    ],
  ),
);

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree, also where exp(−x) overflows or vanishes', async () => {
  for (const key of cases) {
    const shape = [rowsOf(key), size(1, key)];
    const gate = tf.mul(random(shape), 10 ** (key % 4));
    await compareWithPlain((gate, up) => swiGlu(gate as tf.Tensor2D, up as tf.Tensor2D), [gate, random(shape)]);
  }
});

test('numbers that are none stay none', async () => {
  const x = tf.tensor2d([[1, Number.NaN, 2, 3, 4]]);
  const some = tf.ones([1, 5]) as tf.Tensor2D;
  for (const y of [swiGlu(x, some), swiGlu(some, x)]) expect((await y.data()).some(Number.isNaN)).toBe(true);
});
