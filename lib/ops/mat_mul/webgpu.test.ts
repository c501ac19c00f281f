/** `tf.matMul` on webgpu: by tiles, and split over k. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { reason, WITHOUT_KERNELS } from '../../../testing/gpus.ts';
import { initBackend } from '../../backend/index.ts';
import { normals } from '../../random.ts';
import { counters } from '../on_webgpu.ts';

/** Products at a time, and m, k, n of each. */
const CASES = [
  [1, 1, 1, 1],
  [1, 1, 129, 65],
  [1, 67, 71, 1],
  [1, 17, 19, 23],
  [3, 9, 5, 8],
  [300, 3, 7, 2], // many products: by tiles
  [64, 65, 17, 70], // four tiles each, most of them smaller
  [5, 64, 16, 64],
  [2, 0, 3, 4],
];

describe.skipIf(WITHOUT_KERNELS)(`matMul is the sum over j of a_ij b_jk${reason}`, () => {
  beforeAll(() => initBackend('webgpu'));

  test.each(CASES.map((shape, i) => ({ shape, i })))('$shape', async ({ shape: [batch, m, k, n], i }) => {
    for (const [transposeA, transposeB] of [false, true].flatMap((a) => [false, true].map((b) => [a, b]))) {
      const [x, y] = [normals(batch * m * k, 1, i), normals(batch * k * n, 2, i)];
      const a = tf.tensor3d(x, transposeA ? [batch, k, m] : [batch, m, k]);
      const b = tf.tensor3d(y, transposeB ? [batch, n, k] : [batch, k, n]);
      const before = counters.dispatches;
      const c = tf.matMul(a, b, transposeA, transposeB);
      expect(counters.dispatches - before).toBe(m === 0 ? 0 : 1);
      expect(c.shape).toEqual([batch, m, n]);
      const values = await c.data();
      let worst = 0;
      for (let at = 0; at < batch * m * n; at++) {
        const [base, row, column] = [Math.floor(at / (m * n)), Math.floor(at / n) % m, at % n];
        let sum = 0;
        for (let j = 0; j < k; j++) {
          const left = x[base * m * k + (transposeA ? j * m + row : row * k + j)];
          sum += left * y[base * k * n + (transposeB ? column * k + j : j * n + column)];
        }
        worst = Math.max(worst, Math.abs(values[at] - sum));
      }
      expect(worst).toBeLessThan(3e-5);
      tf.dispose([a, b, c]);
    }
  });
});
