import * as tf from '@tensorflow/tfjs';
import { afterEach, beforeAll, describe, expect, test, vi } from 'vitest';
import { gpus, reason, WITHOUT_KERNELS } from '../../testing/gpus.ts';
import { initBackend } from '../backend/index.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { logits } from '../model/llama.ts';
import { createLora } from '../model/lora.ts';
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
    vi.spyOn(console, 'log').mockImplementation(() => {});
    description = await initBackend('wasm', { blas: 'off', threads: 1 });
    model = await loadCheckpoint('lib/model/fixtures/llama_gqa_tied');
    before = await values();
  });
  afterEach(() => {
    sabotage = () => {};
  });
  const find = async () => gpus[0];
  const take = async (options: Parameters<typeof takeFasterGpu>[3], gpu = find, of = model!) =>
    (await takeFasterGpu(of, gpu, description!, { large: 0, faster: 0, ...options })) ?? 'nothing was tried';
  /** What is said of a GPU that is not taken; all else is as it was. */
  const refusal = async (...args: Parameters<typeof take>) => {
    const tensors = tf.memory().numTensors;
    const told = await take(...args);
    expect(told.startsWith(`${description}; not on `)).toBe(true);
    expect(tf.getBackend()).toBe('wasm');
    expect(await initBackend()).toBe(description);
    expect(tf.memory().numTensors).toBe(tensors);
    expect(await values()).toEqual(before);
    return told.slice(told.indexOf(': ', description!.length) + 2);
  };
  const replace = (kernelName: string, by: (original: tf.KernelFunc) => tf.KernelFunc) => {
    const kernel = tf.getKernel(kernelName, 'webgpu');
    tf.unregisterKernel(kernelName, 'webgpu');
    tf.registerKernel({ ...kernel, kernelFunc: by(kernel.kernelFunc) });
  };

  test('is not looked for if the model is small', async () => {
    const gpu = vi.fn(find);
    expect(await takeFasterGpu(model!, gpu, description!)).toBeUndefined();
    expect(gpu).not.toHaveBeenCalled();
  });

  test('is not there', async () => {
    expect(await takeFasterGpu(model!, async () => undefined, description!, { large: 0 })).toBeUndefined();
  });

  test('is not taken if it is slower', async () => {
    expect(await refusal({ faster: 1e9 })).toMatch(/^a trial took [\d.]+ s there, [\d.]+ s on the processor$/);
  });

  test('is not taken if it cannot be used', async () => {
    const gpu = async () => ({ api: gpus[0].api, name: 'no such thing' });
    expect(await refusal({}, gpu)).toMatch(/^no adapter .*no such thing/);
  });

  test.each(['SwiGlu', 'DecoderLayer', 'RmsNormGrad', 'TokenLogProbsGrad', 'SampleTokens'])(
    'is not taken if %s finds something else',
    async (kernelName) => {
      sabotage = () =>
        replace(kernelName, (original) => (call) => {
          const outputs = original(call) as tf.TensorInfo[];
          const i = kernelName === 'SampleTokens' ? 1 : 0; // log-probs, not tokens
          outputs[i] = tf.tidy(() => tf.keep(tf.mul(tf.engine().makeTensorFromTensorInfo(outputs[i]), 1.05)));
          return outputs;
        });
      expect(await take({})).toMatch(/: it does not find what the processor finds$/);
      expect(tf.getBackend()).toBe('wasm');
      expect(await values()).toEqual(before);
    },
  );

  test('is not taken if a kernel fails', async () => {
    sabotage = () =>
      replace('SwiGlu', () => () => {
        throw new Error('broken\nin many words');
      });
    expect((await take({})).endsWith(': broken')).toBe(true);
    expect(tf.getBackend()).toBe('wasm');
    expect(await values()).toEqual(before);
  });

  test('is given up if it does not answer', async () => {
    sabotage = () => {
      tf.backend().read = () => new Promise(() => {});
    };
    const told = await take({ patience: { seconds: 1, times: 0 } });
    expect(told.endsWith(': it gave no answer within 1 s')).toBe(true);
    expect(tf.getBackend()).toBe('wasm');
    expect(await values()).toEqual(before);
  });

  test('is tried with the adapter that is trained, and that alone', async () => {
    const adapted = {
      ...model!,
      lora: createLora(model!.config, { rank: 2, alpha: 4, targets: ['q_proj'], seed: 1, base: '' }),
    };
    let gradients = 0;
    sabotage = () =>
      replace('SumOfSquares', (original) => (call) => {
        gradients++;
        return original(call);
      });
    expect(await refusal({ faster: 1e9 }, find, adapted)).toMatch(/^a trial took/);
    expect(gradients).toBe(2 * Object.keys(adapted.lora.params).length);
    expect(Math.max(...(await adapted.lora.params['model.layers.0.self_attn.q_proj.lora_B.weight'].data()))).toBe(0);
  });

  test('is taken if it is faster, with all that there was', async () => {
    const told = await take({});
    expect(told).toMatch(/^webgpu \(.+\); a trial took [\d.]+ s there, [\d.]+ s on the processor$/);
    expect(tf.getBackend()).toBe('webgpu');
    expect(told.startsWith(await initBackend())).toBe(true);
    const now = await values();
    Array.from(now, (value, i) => expect(Math.abs(value - before![i])).toBeLessThan(1e-3));
    expect(await take({})).toBe('nothing was tried'); // once there, it stays
  });
});
