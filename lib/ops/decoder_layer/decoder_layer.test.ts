/** A layer at once against the model's own, whose operations come one by one. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { reason, WITHOUT_KERNELS } from '../../../testing/gpus.ts';
import { initBackend } from '../../backend/index.ts';
import { loadCheckpoint } from '../../checkpoint/checkpoint.ts';
import { type LlamaConfig, parameterShapes } from '../../model/config.ts';
import { extend, keepRows, type Past, prefill } from '../../model/llama.ts';
import type { Model } from '../../model/model.ts';
import { uniform } from '../../random.ts';
import { random } from '../comparisons.ts';
import { counters } from '../on_webgpu.ts';

describe.skipIf(WITHOUT_KERNELS)(`a decoder's layer on webgpu${reason}`, () => {
  let llama: LlamaConfig;
  beforeAll(async () => {
    await initBackend('webgpu');
    llama = (await loadCheckpoint('lib/model/fixtures/llama_gqa_tied')).config;
  });

  const modelOf = (changes: Partial<LlamaConfig>): Model => {
    const sizes = { numLayers: 2, hiddenSize: 20, intermediateSize: 13, numHeads: 6, numKvHeads: 2, headDim: 6 };
    const config = { ...llama, ...sizes, vocabSize: 30, ...changes };
    const shapes = Object.entries(parameterShapes(config));
    const params = Object.fromEntries(shapes.map(([name, shape]) => [name, tf.mul(random(shape), 0.5)]));
    return { config, params };
  };
  const token = (...key: number[]) => Math.floor(30 * uniform(3, ...key));

  test.each<[string, Partial<LlamaConfig>, number[]]>([
    ['prompts of different lengths, one of them empty', {}, [3, 0, 5]],
    ['prompts of one length', { numKvHeads: 6 }, [4, 4]],
    ['no prompts at all', { headDim: 4, numKvHeads: 1 }, [0, 0]],
    ['biases everywhere', { biases: { qkv: true, o: true, mlp: true } }, [2, 4]],
    ['norms of queries and keys', { qkNorm: true, hiddenSize: 70, headDim: 16 }, [70, 1]],
    ['biases of queries, keys and values', { biases: { qkv: true, o: false, mlp: false }, headDim: 64 }, [3, 2]],
  ])('is the layer: %s', async (_, changes, lengths) => {
    const model = modelOf(changes);
    const prompts = lengths.map((length, p) => Array.from({ length }, (_, t) => token(p, t)));
    // The last prompt has fewer rows than the others: a slot is empty.
    let rows = prompts.flatMap((_, p) =>
      Array.from({ length: p === prompts.length - 1 ? 2 : 4 }, () => ({ prompt: p, length: 1 })),
    );
    let prefix = prefill(model, prompts);
    const begun = rows.map((row) => ({ ...row, length: 5 }));
    const tokens = begun.flatMap((_, r) => Array.from({ length: 5 }, (_, t) => token(6, r, t)));
    let past: Past = extend(model, prefix, undefined, { rows: begun, tokens }).own;
    let plain = past;
    for (let t = 0; t < 5; t++) {
      const tokens = rows.map((_, r) => token(7, r, t));
      const expected = extend(model, prefix, plain, { rows, tokens });
      const actual = extend(model, prefix, past, { rows, tokens, room: 10 });
      const [a, b] = [await actual.hidden.data(), await expected.hidden.data()];
      a.forEach((value, i) => void expect(Math.abs(value - b[i])).toBeLessThan(1e-4));
      [past, plain] = [actual.own, expected.own];
      if (t !== 2) continue;
      const keep = [0, 1, 3, 5];
      plain = keepRows(model, prefix, plain, { rows, keep }).past;
      ({ prefix, past, rows } = keepRows(model, prefix, past, { rows, keep }));
    }
  });

  test('what is recorded keeps its memory to itself', async () => {
    const model = modelOf({});
    const { intermediateSize: I, numHeads, numKvHeads, headDim: D } = model.config;
    const rows = [0, 0, 0].map((prompt) => ({ prompt, length: 1 }));
    // Of what it writes and reads meanwhile, but for what is as large as its input, which would move.
    const widths = [(numHeads + 2 * numKvHeads) * D, numHeads * D, 2 * I, I];
    const { repeated } = counters;
    const others: tf.Tensor[] = [];
    const run = async (room?: number) => {
      const hidden: Float32Array[] = [];
      let past: Past | undefined;
      for (let t = 0; t < 8; t++) {
        const step = tf.tidy(() => extend(model, undefined, past, { rows, tokens: [t, t, t], room }));
        tf.dispose(past?.layers);
        past = step.own;
        hidden.push((await step.hidden.data()) as Float32Array);
        step.hidden.dispose();
        if (room && t > 3) for (const width of widths) others.push(tf.fill([3, width], others.length));
      }
      return hidden.map((values) => [...values]);
    };
    const [expected, actual] = [await run(), await run(8)];
    expect(counters.repeated - repeated).toBeGreaterThan(2 * 9);
    for (const [t, values] of actual.entries()) {
      values.forEach((value, i) => void expect(Math.abs(value - expected[t][i])).toBeLessThan(1e-4));
    }
    for (const [i, other] of others.entries()) {
      expect(new Set(await other.data())).toEqual(new Set([i]));
    }
    tf.dispose(others);
  });

  test('takes nine calls, is recorded, makes no bind group after its first ones, and leaves no tensor', async () => {
    const model = modelOf({});
    const rows = [0, 1, 1].map((prompt) => ({ prompt, length: 1 }));
    const prefix = prefill(model, [[1, 2], [3]]);
    let past: Past | undefined;
    const before = { ...counters };
    let tensors = 0;
    for (let t = 0; t < 12; t++) {
      const { own, hidden } = tf.tidy(() => extend(model, prefix, past, { rows, tokens: [t, t, t], room: 20 }));
      if (t > 3) {
        // Of the two layers, which are recorded, of the embedding before and the norm behind them.
        expect(counters.dispatches - before.dispatches).toBe(2 * 9 + 2);
        expect(counters.repeated - before.repeated).toBe(2 * 9);
        expect(counters.bindGroups - before.bindGroups).toBe(0);
        expect(tf.memory().numTensors).toBe(tensors);
      }
      tf.dispose(past?.layers);
      past = own;
      hidden.dispose();
      Object.assign(before, counters);
      tensors = tf.memory().numTensors + 1 + 4; // the next hidden states, and the next past beside this one
    }
  });
});
