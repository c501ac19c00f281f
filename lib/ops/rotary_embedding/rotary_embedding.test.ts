import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import {
  cases,
  compareWithFormula,
  compareWithPlain,
  random,
  range,
  rowsOf,
  size,
  WITH_KERNELS,
} from '../comparisons.ts';
import { rotaryEmbedding } from './rotary_embedding.ts';

beforeAll(useBackend);

describe('rotaryEmbedding is its formula, and so is its gradient', () => {
  test.each([
    [1, 1, 2],
    [3, 1, 6],
    [5, 3, 10],
  ])('%i tokens, %i heads, dimension %i', (n, heads, d) => {
    const angles = range((n * d) / 2).map((i) => 1 + 0.7 * i);
    const [cos, sin] = [Math.cos, Math.sin].map((f) => tf.tensor3d(angles.map(f), [n, 1, d / 2]));
    return compareWithFormula(
      (x) => rotaryEmbedding(x as tf.Tensor3D, cos, sin),
      // x_i + i x_{i + D/2} is multiplied by e^{i angle}.
      (x) =>
        x.map((value, at) => {
          const i = at % d;
          const angle = angles[Math.floor(at / (heads * d)) * (d / 2) + (i % (d / 2))];
          const other = i < d / 2 ? -x[at + d / 2] : x[at - d / 2];
          return value * Math.cos(angle) + other * Math.sin(angle);
        }),
      [[n, heads, d]],
    );
  });
});

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree', async () => {
  for (const key of cases) {
    const [tokens, heads, half] = [rowsOf(key), 1 + (key % 4), size(1, key)];
    const [cos, sin] = [random([tokens, 1, half]), random([tokens, 1, half])] as tf.Tensor3D[];
    await compareWithPlain((x) => rotaryEmbedding(x as tf.Tensor3D, cos, sin), [random([tokens, heads, 2 * half])]);
  }
});
