/** `tf.matMul` on wasm: by our kernel, and by BLAS where there is one. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { initBackend } from '../../backend/index.ts';
import { normals, uniform } from '../../random.ts';
import { range } from '../comparisons.ts';
import { registerWasmKernels } from '../wasm_kernels.ts';
import { loadBlas } from './blas.ts';

const blas = await loadBlas();

beforeAll(() => initBackend('wasm', { threads: 3, blas: 'off', kernels: 'auto' }));

let draws = 0;
const random = (shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 21, draws++), shape);

/** The products of two batches of matrices, by definition; a batch of one is used with each of the other batch. */
async function product(a: tf.Tensor, b: tf.Tensor, [transposeA, transposeB]: boolean[]): Promise<number[]> {
  const [m, k] = transposeA ? a.shape.slice(-2).reverse() : a.shape.slice(-2);
  const n = b.shape.at(transposeB ? -2 : -1)!;
  const [batchA, batchB] = [a.size / (m * k), b.size / (k * n)];
  const [x, y] = [await a.data(), await b.data()];
  const out: number[] = [];
  for (let i = 0; i < Math.max(batchA, batchB); i++) {
    const [beginA, beginB] = [(i % batchA) * m * k, (i % batchB) * k * n];
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let sum = 0;
        for (let j = 0; j < k; j++) {
          const left = x[beginA + (transposeA ? j * m + row : row * k + j)];
          sum += left * y[beginB + (transposeB ? column * k + j : j * n + column)];
        }
        out.push(sum);
      }
    }
  }
  return out;
}

async function compare(shapes: { batches: number[][]; m: number; k: number; n: number }, transposes: boolean[]) {
  const { batches, m, k, n } = shapes;
  const [transposeA, transposeB] = transposes;
  const a = random([...batches[0], ...(transposeA ? [k, m] : [m, k])]);
  const b = random([...batches[1], ...(transposeB ? [n, k] : [k, n])]);
  const before = tf.backend().numDataIds();
  tf.fill([...batches[0], m, n], Number.NaN).dispose(); // its memory is what the product is likely to be written to
  const out = tf.matMul(a, b, transposeA, transposeB);
  expect(tf.backend().numDataIds()).toBe(before + 1);
  const batch = tf.add(tf.zeros(batches[0]), tf.zeros(batches[1])).shape;
  expect(out.shape).toEqual([...batch, m, n]);
  const expected = await product(a, b, transposes);
  const actual = await out.data();
  const worst = expected.reduce((worst, x, i) => Math.max(worst, Math.abs(actual[i] - x)), 0);
  expect(worst, JSON.stringify({ ...shapes, transposes })).toBeLessThan(3e-5 * Math.sqrt(Math.max(1, k)));
  expect(actual.some(Number.isNaN)).toBe(false);
}

const TRANSPOSES = [false, true].flatMap((a) => [false, true].map((b) => [a, b]));

describe.each([
  { name: 'our kernel', library: null },
  { name: blas ? blas.name : 'BLAS (skipped: no library found)', library: blas },
])('$name: matMul is the sum over j of a_ij b_jk', ({ name, library }) => {
  const skip = !library && name !== 'our kernel';
  beforeAll(async () => {
    if (library) await registerWasmKernels({ shared: true, threads: 3, blas: library, kernels: false });
  });

  test.skipIf(skip).each([
    { batches: [[], []], m: 1, k: 1, n: 1 },
    { batches: [[], []], m: 1, k: 129, n: 65 },
    { batches: [[], []], m: 33, k: 1, n: 301 },
    { batches: [[], []], m: 67, k: 71, n: 1 },
    { batches: [[], []], m: 17, k: 19, n: 23 },
    { batches: [[], []], m: 6, k: 513, n: 8 }, // three parts of the sum
    { batches: [[], []], m: 200, k: 300, n: 136 }, // many tiles, some of them smaller
    { batches: [[5], [5]], m: 3, k: 7, n: 2 },
    { batches: [[3], [3]], m: 31, k: 17, n: 13 },
    {
      batches: [
        [2, 3],
        [2, 3],
      ],
      m: 17,
      k: 16,
      n: 19,
    },
    { batches: [[1], [4]], m: 17, k: 16, n: 19 },
    { batches: [[4], [1]], m: 17, k: 16, n: 19 },
    {
      batches: [
        [2, 1],
        [1, 2],
      ],
      m: 17,
      k: 16,
      n: 19,
    },
    { batches: [[2, 1], [3]], m: 4, k: 3, n: 5 },
  ])('%o', async (shapes) => {
    for (const transposes of TRANSPOSES) await compare(shapes, transposes);
  });

  test.skipIf(skip)('over random shapes', async () => {
    const size = (most: number, ...key: number[]) => Math.floor(most ** uniform(31, ...key));
    for (const key of range(60)) {
      const [batch, m, k, n] = [size(4, key, 0), size(300, key, 1), size(600, key, 2), size(300, key, 3)];
      const shapes = { batches: [[batch], [batch]], m, k, n };
      await compare(shapes, TRANSPOSES[key % 4]);
    }
  });

  test.skipIf(skip)('nothing, and of nothing', async () => {
    for (const transposes of TRANSPOSES) {
      for (const [m, k, n] of [
        [0, 3, 4],
        [3, 4, 0],
        [3, 0, 4],
      ]) {
        await compare({ batches: [[], []], m, k, n }, transposes);
      }
    }
  });

  test.skipIf(skip)('large operands, whose results make the memory grow meanwhile, are not mixed up', async () => {
    const a = tf.ones([1000, 200]);
    const outs = Array.from({ length: 12 }, (_, i) => tf.matMul(a, tf.fill([200, 1000], i)));
    for (const [i, out] of outs.entries()) {
      expect([await tf.min(out).data(), await tf.max(out).data()].map(([x]) => x)).toEqual([200 * i, 200 * i]);
    }
    tf.dispose(outs);
  });

  test.skipIf(skip)('numbers that are none stay none', async () => {
    const a = tf.tensor2d([[1, Number.NaN, 2]]);
    expect(Array.from(await tf.matMul(a, tf.ones([3, 9])).data()).every(Number.isNaN)).toBe(true);
  });
});
