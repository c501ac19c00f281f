import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { gpus, reason, WITHOUT_KERNELS } from '../../testing/gpus.ts';
import { initBackend } from '../backend/index.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { logits } from '../model/llama.ts';
import type { Model } from '../model/model.ts';
import { takeFasterGpu } from './faster_gpu.ts';

/** What is done to webgpu as soon as it is there. */
let sabotage = () => {};
vi.mock('../backend/index.ts', async (original) => {
  const actual = await original<typeof import('../backend/index.ts')>();
  const becomeWebGpu: typeof actual.becomeWebGpu = async (...args) => {
    const description = await actual.becomeWebGpu(...args);
    sabotage();
    return description;
  };
  return { ...actual, becomeWebGpu };
});

// What there is here counts as a GPU, software or not.
describe.skipIf(WITHOUT_KERNELS)(`a GPU that may be faster${reason}`, () => {
  let [model, description, before]: [Model?, string?, ArrayLike<number>?] = [];
  const values = () => logits(model!, [1, 2, 3, 4]).data();
  beforeAll(async () => {
    description = await initBackend('wasm', { blas: 'off', threads: 1 });
    model = await loadCheckpoint('lib/model/fixtures/llama_gqa_tied');
    before = await values();
  });
  const take = (options: object, gpu = gpus[0]) =>
    takeFasterGpu(model!, async () => gpu, description!, { large: 0, ...options });
  const isAsItWas = async () => {
    expect(tf.getBackend()).toBe('wasm');
    expect(await initBackend()).toBe(description);
    expect(await values()).toEqual(before);
  };

  test('is not looked for if the model is small', async () => {
    const gpu = vi.fn(async () => gpus[0]);
    expect(await takeFasterGpu(model!, gpu, description!)).toBe(description);
    expect(gpu).not.toHaveBeenCalled();
  });

  test('is not there', async () => {
    expect(await takeFasterGpu(model!, async () => undefined, description!, { large: 0 })).toBe(description);
    await isAsItWas();
  });

  test('is not taken if it is slower', async () => {
    const told = await take({ faster: 1e9 });
    expect(told.replace(description!, '')).toMatch(
      /^; not on .+: a trial took [\d.]+ s there, [\d.]+ s on the processor$/,
    );
    await isAsItWas();
  });

  test('is not taken if it cannot be used', async () => {
    const told = await take({ faster: 0 }, { api: gpus[0].api, name: 'no such thing' });
    expect(told).toMatch(/; not on no such thing: no adapter .*no such thing/);
    await isAsItWas();
  });

  test.each(['SwiGlu', 'DecoderLayer', 'RmsNormGrad', 'TokenLogProbsGrad', 'SampleTokens'])(
    'is not taken if %s finds something else',
    async (kernelName) => {
      sabotage = () => {
        const kernel = tf.getKernel(kernelName, 'webgpu');
        tf.unregisterKernel(kernelName, 'webgpu');
        const kernelFunc: tf.KernelFunc = (call) => {
          const [first, ...rest] = kernel.kernelFunc(call) as tf.TensorInfo[];
          const wrong = kernelName === 'SampleTokens' ? rest[0] : first;
          const scaled = tf.mul(tf.engine().makeTensorFromTensorInfo(wrong), 1.05);
          return kernelName === 'SampleTokens' ? [first, scaled] : [scaled, ...rest];
        };
        tf.registerKernel({ ...kernel, kernelFunc });
      };
      expect(await take({ faster: 0 })).toMatch(/: it does not find what the processor finds$/);
      sabotage = () => {};
      await isAsItWas();
    },
  );

  test('is taken if it is faster, with all that there was', async () => {
    const told = await take({ faster: 0 });
    expect(told).toMatch(/^webgpu \(.+\); a trial took [\d.]+ s there, [\d.]+ s on the processor$/);
    expect(tf.getBackend()).toBe('webgpu');
    expect(told.startsWith(await initBackend())).toBe(true);
    const now = await values();
    Array.from(now, (value, i) => expect(Math.abs(value - before![i])).toBeLessThan(1e-3));
    // Once there, it stays.
    expect(await take({ faster: 0 })).toBe(description);
  });
});
