import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { reason, WITHOUT_KERNELS } from '../../testing/gpus.ts';
import { initBackend } from '../backend/index.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import type { Model } from '../model/model.ts';
import { uniform } from '../random.ts';
import { completionLogProbs } from '../training/log_probs.ts';
import { type GenerateOptions, generate } from './generate.ts';

describe.skipIf(WITHOUT_KERNELS)(`sampling on a GPU${reason}`, () => {
  let model: Model;
  beforeAll(async () => {
    await initBackend('webgpu');
    model = await loadCheckpoint('lib/model/fixtures/llama_gqa_tied');
  });
  const prompts = [[17, 4, 200, 31, 9], [250], [3, 77, 118]];
  const options: GenerateOptions = {
    ...{ temperature: 1.2, topK: 0, topP: 1, maxNewTokens: 12 },
    eosTokenIds: Array.from({ length: 26 }, (_, i) => 10 * i), // one token in about ten
    random: (row, position) => uniform(5, row, position),
  };

  test.each([1.2, 0])(
    'goes on before what was drawn is read, to the same completions (temperature %d)',
    async (temperature) => {
      /** For each position, the last one that was drawn for when it had been read. */
      const drawn: number[] = [];
      let last = -1;
      const sample = async (more: Partial<GenerateOptions>) => {
        drawn.length = 0;
        const random = (row: number, position: number) => {
          last = position;
          return options.random(row, position);
        };
        const backend = tf.backend();
        const { read: own } = backend;
        backend.read = async (dataId) => {
          const values = await own.call(backend, dataId);
          drawn.push(last);
          return values;
        };
        try {
          return await generate(model, prompts, 5, { ...options, temperature, random, ...more });
        } finally {
          backend.read = own;
        }
      };
      const ahead = await sample({});
      expect(drawn.slice(0, 2)).toEqual([1, 1]); // token and log-prob of position 0, while 1 is under way
      for (const more of [{ react: () => undefined }, { onProgress: () => {} }]) {
        expect(await sample(more)).toEqual(ahead);
        expect(drawn.slice(0, 4)).toEqual([0, 0, 1, 1]);
      }
      expect(new Set(ahead.map(({ tokens }) => tokens.length)).size).toBeGreaterThan(1); // rows left the batch on the way
    },
  );

  test('follows prompts that leave the batch, until those that are left have one length', async () => {
    const lists = [8, 8, 8, 4].map((length, p) => Array.from({ length }, (_, t) => Math.floor(256 * uniform(9, p, t))));
    for (let seed = 0; seed < 8; seed++) {
      const random = (row: number, position: number) => uniform(5, seed, row, position);
      const completions = await generate(model, lists, 1, { ...options, maxNewTokens: 14, random });
      const sequences = completions.map(({ tokens }, p) => ({ prompt: lists[p], completion: tokens }));
      const grid = tf.tidy(() => completionLogProbs(model, sequences, options.temperature).logProbs);
      const scores = (await grid.array()) as number[][];
      grid.dispose();
      for (const [p, { logProbs }] of completions.entries()) {
        for (const [t, logProb] of logProbs.entries()) expect(Math.abs(logProb - scores[p][t])).toBeLessThan(1e-4);
      }
    }
  });

  test('takes weights that change between two positions', async () => {
    const other = { ...model.params, 'model.norm.weight': tf.mul(model.params['model.norm.weight'], 3) };
    const sample = async (change: number) => {
      const acting = { ...model };
      const onProgress = ({ positions }: { positions: number }) => {
        if (positions === change) acting.params = other;
      };
      const [{ logProbs }] = await generate(acting, [prompts[0]], 1, { ...options, eosTokenIds: [], onProgress });
      return logProbs;
    };
    const [never, later] = [await sample(-1), await sample(3)];
    expect(later.slice(0, 3)).toEqual(never.slice(0, 3));
    expect(later[3]).not.toBe(never[3]);
  });

  test('leaves no tensor, not even when it is stopped on the way', async () => {
    const before = tf.memory().numTensors;
    await generate(model, prompts, 3, options);
    expect(tf.memory().numTensors).toBe(before);
    const endless = { ...options, eosTokenIds: [] };
    const random = (_: number, position: number) => {
      if (position === 4) throw new Error('stopped');
      return 0.5;
    };
    await expect(generate(model, prompts, 3, { ...endless, random })).rejects.toThrow('stopped');
    expect(tf.memory().numTensors).toBe(before);

    const kernel = tf.getKernel('SampleTokens', 'webgpu');
    let calls = 0;
    const kernelFunc: tf.KernelFunc = (call) => {
      if (calls++ === 3) throw new Error('full');
      return kernel.kernelFunc(call);
    };
    tf.unregisterKernel('SampleTokens', 'webgpu');
    tf.registerKernel({ ...kernel, kernelFunc });
    await expect(generate(model, prompts, 3, endless)).rejects.toThrow('full');
    expect(tf.memory().numTensors).toBe(before);
  });

  test('keeps no more memory, however many different numbers of rows there were', async () => {
    const { bufferManager } = tf.backend() as unknown as { bufferManager: { numBytesUsed: number } };
    const used: number[] = [];
    for (let seed = 0; seed < 5; seed++) {
      const random = (row: number, position: number) => uniform(7, seed, row, position);
      const many = Array.from({ length: 4 }, (_, i) => [1 + i, 2, 3]);
      await generate(model, many, 8, { ...options, random });
      used.push(bufferManager.numBytesUsed);
    }
    expect(used.at(-1)).toBeLessThan(1.1 * used[0]); // what a layer works with is kept, for the most rows there were
  });
});
