import * as tf from '@tensorflow/tfjs';
import '@tensorflow/tfjs-backend-wasm';
import { beforeAll, describe, expect, test } from 'vitest';
import { normals } from '../random.ts';
import { patchWasmBackend } from './wasm.ts';

beforeAll(async () => {
  await tf.setBackend('wasm');
  patchWasmBackend();
});

let draws = 0;
const random = (shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 21, draws++), shape);

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
