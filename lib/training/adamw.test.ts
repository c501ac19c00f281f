import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { normals } from '../random.ts';
import { adamW, clippingFactor, createAdamW, globalNorm } from './adamw.ts';

beforeAll(useBackend);

const shapes: Record<string, number[]> = { matrix: [3, 5], norm: [7], column: [4, 1] };
const random = (key: number) =>
  Object.fromEntries(
    Object.entries(shapes).map(([name, shape], i) => {
      return [name, tf.tensor(normals(tf.util.sizeFromShape(shape), 9, key, i), shape)];
    }),
  );
const numbers = async (tensors: Record<string, tf.Tensor>) =>
  Object.fromEntries(
    await Promise.all(Object.entries(tensors).map(async ([name, x]) => [name, Array.from(await x.data())] as const)),
  );

describe('adamW', () => {
  test.each([
    { weightDecay: 0 },
    { weightDecay: 0.1, gradientScale: 0.3 },
    { weightDecay: 0.1, beta1: 0.5, beta2: 0.9, epsilon: 1e-3 },
  ])('five updates, as PyTorch’s formula gives them in plain numbers: %o', async (options) => {
    const { weightDecay, gradientScale = 1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 } = options;
    let params: Record<string, tf.Tensor> = random(0);
    let state = createAdamW(params);
    const expected = await numbers(params);
    const m = await numbers(state.m);
    const v = await numbers(state.v);
    for (let step = 1; step <= 5; step++) {
      const learningRate = 0.01 * step;
      const gradients = random(step);
      for (const [name, gradient] of Object.entries(await numbers(gradients))) {
        const decay = shapes[name].length > 1 ? 1 - learningRate * weightDecay : 1;
        gradient.forEach((unscaled, i) => {
          const g = gradientScale * unscaled;
          m[name][i] = beta1 * m[name][i] + (1 - beta1) * g;
          v[name][i] = beta2 * v[name][i] + (1 - beta2) * g * g;
          const [mHat, vHat] = [m[name][i] / (1 - beta1 ** step), v[name][i] / (1 - beta2 ** step)];
          expected[name][i] = expected[name][i] * decay - (learningRate * mHat) / (Math.sqrt(vHat) + epsilon);
        });
      }
      ({ params, state } = adamW(params, gradients, state, { learningRate, ...options }));
    }
    expect(state.step).toBe(5);
    for (const [actual, wanted] of [
      [params, expected],
      [state.m, m],
      [state.v, v],
    ] as const) {
      for (const [name, values] of Object.entries(await numbers(actual))) {
        values.forEach((x, i) => void expect(Math.abs(x - wanted[name][i])).toBeLessThan(2e-6));
      }
    }
  });

  test('norms do not decay, matrices do even without a gradient', async () => {
    const params = random(0);
    const before = await numbers(params);
    const zeros = Object.fromEntries(Object.entries(params).map(([name, x]) => [name, tf.zerosLike(x)]));
    const { params: after } = adamW(params, zeros, createAdamW(params), { learningRate: 0.5, weightDecay: 0.2 });
    for (const [name, values] of Object.entries(await numbers(after))) {
      const factor = name === 'norm' ? 1 : 0.9;
      values.forEach((x, i) => void expect(x).toBeCloseTo(factor * before[name][i], 6));
    }
  });

  test('keeps as many tensors as it had', () => {
    let params: Record<string, tf.Tensor> = random(0);
    let state = createAdamW(params);
    const gradients = random(1);
    const before = tf.memory().numTensors;
    for (let i = 0; i < 3; i++) {
      ({ params, state } = adamW(params, gradients, state, { learningRate: 0.1, weightDecay: 0.1 }));
      expect(tf.memory().numTensors).toBe(before);
    }
  });
});

describe('globalNorm', () => {
  test('is that of all gradients together', async () => {
    const gradients = random(2);
    const values = Object.values(await numbers(gradients)).flat();
    const norm = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
    expect((await globalNorm(gradients).data())[0]).toBeCloseTo(norm, 5);
  });

  test('of a large matrix keeps its digits', async () => {
    const norm = globalNorm({ w: tf.fill([5000, 400], 1.1) });
    expect((await norm.data())[0] / (Math.fround(1.1) * Math.sqrt(2e6)) - 1).toBeCloseTo(0, 6);
  });

  test('of zeros is zero', async () => {
    expect((await globalNorm({ w: tf.zeros([3]) }).data())[0]).toBe(0);
  });
});

test.each([
  [2, 0.5, 0.5 / 2.000001],
  [0.5, 0.5, 0.5 / 0.500001],
  [0.4, 0.5, 1],
  [0, 1, 1],
  [2, 0, 1],
])('a norm of %d is clipped to %d by the factor %d', (norm, maxNorm, factor) => {
  expect(clippingFactor(norm, maxNorm)).toBeCloseTo(factor, 7);
});
