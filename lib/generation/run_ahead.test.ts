import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { reason, WITHOUT_KERNELS } from '../../testing/gpus.ts';
import { initBackend } from '../backend/index.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import type { Model } from '../model/model.ts';
import { uniform } from '../random.ts';
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
    'goes on before what was drawn is read, and samples the same (temperature %d)',
    async (temperature) => {
      /** The position that was drawn for last when one has been read. */
      const log: [drawn: number, read: number][] = [];
      let drawn = -1;
      const sample = (more: Partial<GenerateOptions>) => {
        log.length = 0;
        const random = (row: number, position: number) => {
          drawn = position;
          return options.random(row, position);
        };
        const onProgress = ({ positions }: { positions: number }) => void log.push([drawn, positions - 1]);
        return generate(model, prompts, 5, { ...options, temperature, random, onProgress, ...more });
      };
      const ahead = await sample({});
      expect(log.filter(([drawn, read]) => drawn === read + 1).length).toBeGreaterThan(5);
      // Who is asked after each token cannot be asked late.
      const asked = await sample({ react: () => undefined });
      expect(log.every(([drawn, read]) => drawn === read)).toBe(true);
      expect(ahead).toEqual(asked);
      const lengths = new Set(ahead.map(({ tokens }) => tokens.length));
      expect(lengths.size).toBeGreaterThan(1); // rows left the batch on the way
    },
  );

  test('leaves no tensor, not even when it is stopped on the way', async () => {
    const before = tf.memory().numTensors;
    await generate(model, prompts, 3, options);
    expect(tf.memory().numTensors).toBe(before);
    const random = (_: number, position: number) => {
      if (position === 4) throw new Error('stopped');
      return 0.5;
    };
    await expect(generate(model, prompts, 3, { ...options, eosTokenIds: [], random })).rejects.toThrow('stopped');
    expect(tf.memory().numTensors).toBe(before);
  });
});
