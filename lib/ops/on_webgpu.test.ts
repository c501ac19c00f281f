/** How kernels for WebGPU are called; each kernel is tested in the room of its operation. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { reason, WITHOUT_KERNELS } from '../../testing/gpus.ts';
import { initBackend } from '../backend/index.ts';
import { uniform } from '../random.ts';
import { adamW, createAdamW } from '../training/adamw.ts';
import { random } from './comparisons.ts';
import { counters } from './on_webgpu.ts';
import { rmsNorm } from './rms_norm/rms_norm.ts';
import { swiGlu } from './swiglu/swiglu.ts';

describe.skipIf(WITHOUT_KERNELS)(`kernels on webgpu${reason}`, () => {
  beforeAll(() => initBackend('webgpu'));

  /** What f has to do. */
  const counted = (f: () => void) => {
    const before = { ...counters };
    f();
    return { dispatches: counters.dispatches - before.dispatches, bindGroups: counters.bindGroups - before.bindGroups };
  };
  const ones = (rows: number, columns: number) => tf.ones([rows, columns]) as tf.Tensor2D;

  test('a call for the same memory makes nothing anew', async () => {
    const [x, w] = [ones(3, 5), tf.ones([5])];
    const call = () => tf.tidy(() => void rmsNorm(rmsNorm(x, w, 0), w, 0));
    call();
    expect(counted(call)).toEqual({ dispatches: 2, bindGroups: 0 });
  });

  test('a step of AdamW leaves parameters and moments where they are, so that the next one makes nothing anew', async () => {
    const params = { w: tf.tensor1d([1, -2, 3]) };
    const shared = tf.clone(params.w);
    const gradient = { w: tf.ones([3]) };
    const options = { learningRate: 0.5, weightDecay: 0 };
    const { params: next, state } = adamW(params, gradient, createAdamW(params), options);
    expect(counted(() => void adamW(next, gradient, state, options))).toEqual({ dispatches: 1, bindGroups: 0 });
    expect(Array.from(await shared.data())).toEqual([1, -2, 3]);
  });

  test("calls and TensorFlow.js's own operations take their turns in order, also where memory changes hands", async () => {
    const results = [];
    for (let i = 0; i < 200; i++) {
      // What one call leaves is the next one's memory: all sizes are the same.
      results.push(
        tf.tidy(() => tf.sum(tf.add(swiGlu(tf.mul(ones(8, 8), i) as tf.Tensor2D, tf.add(ones(8, 8), i)), 1))),
      );
    }
    for (const [i, sum] of results.entries()) {
      const expected = 64 * ((i / (1 + Math.exp(-i))) * (1 + i) + 1);
      expect(Math.abs((await sum.data())[0] / expected - 1)).toBeLessThan(1e-5);
    }
  });

  test('what was cast to float32, of which the backend keeps the integers', async () => {
    const x = tf.tensor2d([[0.5, -1, 2]]);
    const [bool, int] = [tf.lessEqual(x, 1), tf.add(tf.tensor1d([7, 8, 9], 'int32'), tf.scalar(1, 'int32'))];
    const product = tf.mul(tf.add(bool.toFloat(), x), int.toFloat());
    expect(Array.from(await product.data())).toEqual([1.5 * 8, 0, 2 * 10]);
    const gated = swiGlu(bool.toFloat() as tf.Tensor2D, x);
    expect((await gated.data())[0]).toBeCloseTo(0.5 / (1 + Math.exp(-1)), 6);
    const [minimum] = tf.grads((x) => tf.minimum(x, 1))([x]);
    expect(Array.from(await minimum.data())).toEqual([1, 1, 0]);
  });

  test('the gradient of gather adds up rows taken several times, to the same bits every time', async () => {
    const [rows, width, taken] = [37, 70, 300];
    const ids = Int32Array.from({ length: taken }, (_, i) => Math.floor(rows * uniform(1, i) ** 2));
    const dy = random([taken, width]);
    const gradient = () =>
      tf
        .grad((x) => tf.gather(x, tf.tensor1d(ids, 'int32')))(tf.zeros([rows, width]), dy)
        .data();
    const [x, first, second] = [await dy.data(), await gradient(), await gradient()];
    expect(first).toEqual(second);
    const expected = new Float64Array(rows * width);
    for (const [i, id] of ids.entries()) {
      for (let d = 0; d < width; d++) expected[id * width + d] += x[i * width + d];
    }
    first.forEach((value, i) => void expect(Math.abs(value - expected[i])).toBeLessThan(1e-4));
  });

  test('more workgroups than there may be in one dimension', async () => {
    const count = 66_000 * 64;
    const up = tf.tidy(() => tf.reshape(tf.range(0, count), [1, count])) as tf.Tensor2D;
    const y = swiGlu(tf.onesLike(up), up);
    for (const i of [1, 65_535 * 64 - 1, 65_535 * 64, 65_536 * 64, count - 1]) {
      const [value] = await tf.slice(y, [0, i], [1, 1]).data();
      expect(Math.abs((value * (1 + Math.exp(-1))) / i - 1)).toBeLessThan(1e-5);
    }
  });
});
