import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-wasm';
import { beforeAll, describe, expect, test } from 'vitest';
import { normals } from '../random.ts';
import { loadBlas } from './blas.ts';
import { patchWasmBackend } from './wasm.ts';

const blas = await loadBlas();

beforeAll(async () => {
  await tf.setBackend('wasm');
  patchWasmBackend(null);
});

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

// With a CBLAS, its kernels come on top of those without.
describe.each([
  { name: 'wasm alone', library: null },
  { name: blas ? `with ${blas.name}` : 'with BLAS (skipped: no library found)', library: blas },
])('$name', ({ library, name }) => {
  const skip = !library && name !== 'wasm alone';
  beforeAll(() => {
    if (!library) return;
    tf.unregisterKernel('UnsortedSegmentSum', 'wasm');
    patchWasmBackend(library);
  });

  describe.skipIf(skip)('matMul is the sum over j of a_ij b_jk', () => {
    const transposes = [false, true].flatMap((a) => [false, true].map((b) => [a, b]));
    test.each([
      { batches: [[], []], m: 1, k: 1, n: 1 },
      { batches: [[], []], m: 1, k: 129, n: 65 },
      { batches: [[], []], m: 33, k: 1, n: 301 },
      { batches: [[], []], m: 67, k: 71, n: 1 },
      { batches: [[], []], m: 17, k: 19, n: 23 },
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
    ])('%o', async ({ batches, m, k, n }) => {
      for (const [transposeA, transposeB] of transposes) {
        const a = random([...batches[0], ...(transposeA ? [k, m] : [m, k])]);
        const b = random([...batches[1], ...(transposeB ? [n, k] : [k, n])]);
        const before = tf.backend().numDataIds();
        const out = tf.matMul(a, b, transposeA, transposeB);
        expect(tf.backend().numDataIds()).toBe(before + 1);
        const batch = tf.add(tf.zeros(batches[0]), tf.zeros(batches[1])).shape;
        expect(out.shape).toEqual([...batch, m, n]);
        const expected = await product(a, b, [transposeA, transposeB]);
        const actual = await out.data();
        expected.forEach((x, i) => void expect(Math.abs(actual[i] - x)).toBeLessThan(2e-5));
      }
    });
  });

  test.skipIf(skip)('large operands, whose results make the wasm memory grow meanwhile, are not mixed up', async () => {
    const a = tf.ones([1000, 200]);
    const outs = Array.from({ length: 12 }, (_, i) => tf.matMul(a, tf.fill([200, 1000], i)));
    for (const [i, out] of outs.entries()) {
      expect([await tf.min(out).data(), await tf.max(out).data()].map(([x]) => x)).toEqual([200 * i, 200 * i]);
    }
    tf.dispose(outs);
  });
});

describe('gather', () => {
  test.each([
    { shape: [5], ids: [4, 0, 0], axis: 0 },
    { shape: [5, 3], ids: [2], axis: 0 },
    { shape: [4, 3, 2], ids: [3, 1, 1, 0, 2, 3], axis: 0 },
    { shape: [4, 3, 2], ids: [2, 0], axis: 1 },
  ])('and its gradient, in which rows taken twice add up: %o', async ({ shape, ids, axis }) => {
    const x = random(shape);
    const take = (x: tf.Tensor) => tf.gather(x, tf.tensor1d(ids, 'int32'), axis);
    const oneHot = tf.oneHot(tf.tensor1d(ids, 'int32'), shape[axis]).toFloat();
    const product = (x: tf.Tensor) =>
      axis === 0
        ? tf.dot(oneHot, tf.reshape(x, [shape[0], -1]))
        : tf.stack(tf.unstack(x).map((y) => tf.dot(oneHot, y)));
    const [out, expected] = [take(x), product(x)];
    expect(out.shape).toEqual([...shape.slice(0, axis), ids.length, ...shape.slice(axis + 1)]);
    expect(Array.from(await out.data())).toEqual(Array.from(await expected.data()));
    const weights = random(out.shape);
    const gradient = (f: (x: tf.Tensor) => tf.Tensor) =>
      tf.grad((x) => tf.sum(tf.mul(tf.reshape(f(x), out.shape), weights)))(x);
    const [actual, wanted] = [await gradient(take).data(), await gradient(product).data()];
    wanted.forEach((value, i) => void expect(Math.abs(actual[i] - value)).toBeLessThan(1e-6));
  });

  test('integers too, with indices of any shape', async () => {
    const x = tf.tensor2d([1, 2, 3, 4], [2, 2], 'int32');
    const out = tf.gather(x, tf.tensor2d([1, 0, 1, 1], [2, 2], 'int32'));
    expect([out.dtype, out.shape]).toEqual(['int32', [2, 2, 2]]);
    expect(Array.from(await out.data())).toEqual([3, 4, 1, 2, 3, 4, 3, 4]);
  });

  test.each([-1, 3])('index %d of three rows is refused: other memory would come back', (id) => {
    expect(() => tf.gather(tf.zeros([3, 2]), tf.tensor1d([0, id], 'int32'))).toThrow(RangeError);
  });
});

describe('a clone shares its memory', () => {
  test.each(['original', 'clone'])('and stays valid when the %s is disposed of', async (first) => {
    const { numTensors, numDataBuffers } = tf.memory();
    const original = tf.tensor1d([1, 2, 3]);
    const clone = tf.clone(original);
    expect(tf.memory().numDataBuffers).toBe(numDataBuffers + 1);
    const [gone, left] = first === 'original' ? [original, clone] : [clone, original];
    gone.dispose();
    const others = Array.from({ length: 20 }, () => tf.fill([3], -1)); // would take the memory, were it free
    expect(Array.from(await left.data())).toEqual([1, 2, 3]);
    expect(Array.from(await tf.add(left, 1).data())).toEqual([2, 3, 4]);
    tf.dispose([left, others]);
    expect(tf.memory().numDataBuffers).toBe(numDataBuffers + 1); // that of the sum
    expect(tf.memory().numTensors).toBe(numTensors + 1);
  });

  test('and what is computed from it leaves the original as it was', async () => {
    const original = tf.tensor1d([1, -2, 3]);
    const results = [tf.relu(tf.clone(original)), tf.neg(tf.clone(original)), tf.add(tf.clone(original), 5)];
    expect(Array.from(await original.data())).toEqual([1, -2, 3]);
    tf.dispose(results);
  });
});

test('a tensor that does not fit into memory is refused in one sentence, and what is there stays whole', async () => {
  const kept = tf.tensor1d([1, 2, 3]);
  const backend = tf.backend() as unknown as { makeOutput(shape: number[], dtype: string): tf.TensorInfo };
  const allocate = () => backend.makeOutput([2 ** 27], 'float32'); // 512 MB that are never written to
  const reserved: tf.TensorInfo[] = [];
  expect(() => {
    while (reserved.length < 8) reserved.push(allocate());
  }).toThrow(/^out of memory: .* 512 MB more were needed/);
  expect(reserved.length).toBeGreaterThan(5);
  for (const { dataId } of reserved) (tf.backend() as unknown as { disposeData(id: object): void }).disposeData(dataId);

  expect(Array.from(await kept.data())).toEqual([1, 2, 3]);
});

test('a product over nothing is zero', async () => {
  const garbage = tf.fill([3, 4], 7);
  garbage.dispose(); // its memory is what the product is written to
  const product = tf.matMul(tf.zeros([3, 0]), tf.zeros([0, 4]));
  expect(Array.from(await product.data())).toEqual(new Array(12).fill(0));
});

test('a sum over nothing is zero', async () => {
  const garbage = tf.fill([5], 7);
  garbage.dispose(); // its memory is what the sum is written to
  expect(Array.from(await tf.sum(tf.zeros([0, 5]), 0).data())).toEqual(new Array(5).fill(0));
});
