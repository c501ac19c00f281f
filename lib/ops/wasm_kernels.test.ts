/** Every kernel against the plain definition that it replaces: value and gradient, over random shapes. */
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { initBackend } from '../backend/index.ts';
import { normals, permutation, uniform } from '../run/random.ts';
import { type AdamWState, adamW } from '../training/adamw.ts';
import { attention } from './attention/attention.ts';
import { linear } from './linear/linear.ts';
import { moveRows } from './move_rows/move_rows.ts';
import { rmsNorm } from './rms_norm/rms_norm.ts';
import { rotaryEmbedding } from './rotary_embedding/rotary_embedding.ts';
import { sampleToken, sampleTokens } from './sample_tokens/sample_tokens.ts';
import { swiGlu } from './swiglu/swiglu.ts';
import { tokenLogProbs } from './token_log_probs/token_log_probs.ts';
import type { WasmBackend } from './wasm_backend.ts';
import { registerWasmKernels, WASM_KERNELS } from './wasm_kernels.ts';

const TOLERANCE = 1e-5;
const CASES = 40;

let built = false;
/** Blocks of the backend's memory that are taken. */
let blocks = 0;
beforeAll(async () => {
  await initBackend('wasm', { kernels: 'off' });
  built = await registerWasmKernels();
  const { wasm } = tf.backend() as WasmBackend;
  const { _malloc: allocate, _free: free } = wasm;
  Object.assign(wasm, {
    _malloc: (bytes: number) => {
      blocks++;
      return allocate(bytes);
    },
    _free: (address: number) => {
      blocks--;
      free(address);
    },
  });
});

test('are built, and claim no address for data of their own', async () => {
  expect(built).toBe(true); // else: npm run build
  const bytes = await readFile('lib/dist/kernels.wasm');
  // A module is a list of sections, each with its number and size (LEB128); 11 is data.
  const sections: number[] = [];
  for (let at = 8; at < bytes.length; ) {
    sections.push(bytes[at++]);
    let size = 0;
    let byte = 128;
    for (let shift = 0; byte >= 128; shift += 7) {
      byte = bytes[at++];
      size += (byte & 127) << shift;
    }
    at += size;
  }
  expect(sections).toContain(10); // code
  expect(sections).not.toContain(11);
});

/** Calls f where none of the kernels is registered. */
function plainly<T>(f: () => T): T {
  const kernels = WASM_KERNELS.filter(({ kernelName }) => kernelName !== tf.Concat).map(({ kernelName }) =>
    tf.getKernel(kernelName, 'wasm'),
  );
  for (const { kernelName } of kernels) tf.unregisterKernel(kernelName, 'wasm');
  try {
    return f();
  } finally {
    for (const kernel of kernels) tf.registerKernel(kernel);
  }
}

let draws = 0;
const random = (shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 3, draws++), shape);
/** A size from 1 to 40, half of them among those that fill no, or exactly, whole fours. */
const size = (...key: number[]) =>
  uniform(5, ...key) < 0.5
    ? [1, 3, 4, 5, 16, 17][Math.floor(6 * uniform(6, ...key))]
    : 1 + Math.floor(40 * uniform(7, ...key));

/** Largest difference, relative to the largest number, or to 1, which is the size of the inputs. */
async function expectSame(actual: tf.Tensor[], expected: tf.Tensor[]): Promise<void> {
  for (const [i, x] of actual.entries()) {
    expect(x.shape).toEqual(expected[i].shape);
    const [a, b] = [await x.data(), await expected[i].data()];
    const scale = Math.max(1, ...b.map(Math.abs));
    a.forEach((value, j) => void expect(Math.abs(value - b[j]) / scale).toBeLessThan(TOLERANCE));
  }
}

/** Value and gradients of an operation, with kernels and without; nothing is left behind. */
async function compare(op: (...inputs: tf.Tensor[]) => tf.Tensor, inputs: tf.Tensor[]): Promise<void> {
  const before = [tf.memory().numTensors, blocks];
  const value = op(...inputs);
  const dy = random(value.shape);
  const all = () => [op(...inputs), ...tf.grads(op)(inputs, dy)];
  const [actual, expected] = [all(), plainly(all)];
  await expectSame(actual, expected);
  tf.dispose([value, dy, actual, expected]);
  expect([tf.memory().numTensors, blocks]).toEqual(before);
  tf.dispose(inputs);
}

const cases = Array.from({ length: CASES }, (_, key) => key);
/** Rows, of which the first two cases have none and one. */
const rowsOf = (key: number) => (key < 2 ? key : size(0, key));

test('rmsNorm', async () => {
  for (const key of cases) {
    const width = size(1, key);
    await compare((x, w) => rmsNorm(x as tf.Tensor2D, w, 1e-5), [random([rowsOf(key), width]), random([width])]);
  }
});

test('rotaryEmbedding', async () => {
  for (const key of cases) {
    const [tokens, heads, half] = [rowsOf(key), 1 + (key % 4), size(1, key)];
    const [cos, sin] = [random([tokens, 1, half]), random([tokens, 1, half])] as tf.Tensor3D[];
    await compare((x) => rotaryEmbedding(x as tf.Tensor3D, cos, sin), [random([tokens, heads, 2 * half])]);
  }
});

test('swiGlu, also where exp(−x) overflows or vanishes', async () => {
  for (const key of cases) {
    const shape = [rowsOf(key), size(1, key)];
    const gate = tf.mul(random(shape), 10 ** (key % 4));
    await compare((gate, up) => swiGlu(gate as tf.Tensor2D, up as tf.Tensor2D), [gate, random(shape)]);
  }
});

test('moveRows', async () => {
  for (const key of cases) {
    const [from, holes] = [rowsOf(key), key % 3 === 0 ? 2 : 0];
    const order = permutation(from + holes, 8, key);
    const index = {
      rows: tf.tensor1d(
        Int32Array.from(order, (row) => Math.min(row, from)),
        'int32',
      ),
      holes: holes > 0,
    };
    const inverse = Int32Array.from({ length: from }, (_, row) => order.indexOf(row));
    const back = { rows: tf.tensor1d(inverse, 'int32'), holes: false };
    await compare((x) => moveRows(x as tf.Tensor2D, index, back), [random([from, size(1, key)])]);
  }
});

test('attention: shared and padded prefixes, causal rows, any head dimension', async () => {
  for (const key of cases) {
    const [prompts, group, heads, time] = [1, 2, 3, 4].map((i) => 1 + Math.floor(4 * uniform(9, key, i)));
    const [dim, length, past] = [size(1, key), size(2, key), key % 2 ? size(3, key) : 0];
    const queries = prompts * group * heads * time;
    const shapes = [...Array(2).fill([prompts, length, dim]), ...Array(2).fill([prompts * group, past + time, dim])];
    // A prompt may be empty: then its keys are padding only.
    const counts = Array.from({ length: prompts }, (_, i) => Math.floor((length + 1) * uniform(10, key, i)));
    const inPrefix = { counts, divisor: group * heads * time };
    const inRow = { counts: Array.from({ length: time }, (_, t) => past + t + 1), divisor: 1 };
    const alone = key % 4 === 0;
    const op = (q: tf.Tensor, ...rest: tf.Tensor[]) => {
      const [k, v, ownK, ownV] = [...(alone ? [q, q] : []), ...rest] as tf.Tensor3D[];
      const own = { k: ownK, v: ownV, visible: inRow };
      return attention(q as tf.Tensor2D, alone ? [own] : [{ k, v, visible: inPrefix }, own]);
    };
    await compare(op, [random([queries, dim]), ...shapes.slice(alone ? 2 : 0).map(random)]);
  }
});

test('tokenLogProbs, in one chunk and in several', async () => {
  for (const key of cases) {
    const [count, width, vocabulary] = [rowsOf(key), size(1, key), (key % 5 ? 1 : 1200) + size(2, key)];
    const tokens = Int32Array.from({ length: count }, (_, i) => Math.floor(vocabulary * uniform(11, key, i)));
    const options = { temperature: key % 2 ? 1 : 0.7, maxLogits: key % 3 ? 100 : 2 ** 20 };
    const op = (x: tf.Tensor, head: tf.Tensor) => tokenLogProbs(x as tf.Tensor2D, head, tokens, options);
    await compare(op, [random([count, width]), random([vocabulary, width])]);
  }
});

test('tokenLogProbs of large logits at a low temperature', async () => {
  const head = random([70, 8]);
  const tokens = Int32Array.from({ length: 5 }, (_, i) => 14 * i);
  const op = (x: tf.Tensor, head: tf.Tensor) => tokenLogProbs(x as tf.Tensor2D, head, tokens, { temperature: 0.05 });
  await compare(op, [tf.mul(random([5, 8]), 30), head]);
  expect(() => tokenLogProbs(random([1, 8]) as tf.Tensor2D, head, Int32Array.of(70))).toThrow(/token 70 is outside/);
});

test('concat, along every axis and of every type', async () => {
  for (const key of cases) {
    const [a, b, c] = [size(1, key), size(2, key), size(3, key)];
    const axis = key % 3;
    const dtype = (['float32', 'int32', 'bool'] as const)[key % 5 === 4 ? 2 : key % 2];
    const parts = [1, key % 5, 3].map((extra) => tf.cast(tf.mul(random([a, b, c].with(axis, extra)), 9), dtype));
    const joined = tf.concat(parts, axis);
    expect(joined.dtype).toBe(dtype);
    let begin = 0;
    for (const part of parts) {
      const at = [0, 0, 0].with(axis, begin);
      begin += part.shape[axis]!;
      await expectSame([tf.slice(joined, at, part.shape)], [part]);
    }
    expect(joined.shape).toEqual([a, b, c].with(axis, begin));
  }
  expect(() => tf.concat([tf.zeros([2, 3]), tf.zeros([2, 4])], 0)).toThrow();
});

test('no queries, no rows to draw for, no parameter', async () => {
  const keys = () => random([2, 3, 4]) as tf.Tensor3D;
  expect((await attention(tf.zeros([0, 4]), [{ k: keys(), v: keys() }]).data()).length).toBe(0);
  expect(await sampleTokens(tf.zeros([0, 7]), new Float64Array(0), { temperature: 1, topK: 0, topP: 1 })).toEqual([]);
  const none = { w: tf.zeros([0, 3]) };
  const state: AdamWState = { step: 0, m: { w: tf.zeros([0, 3]) }, v: { w: tf.zeros([0, 3]) } };
  const next = adamW({ w: tf.zeros([0, 3]) }, none, state, { learningRate: 1, weightDecay: 0 });
  expect(next.params.w.shape).toEqual([0, 3]);
});

describe('sampling', () => {
  const options = { temperature: 1, topK: 0, topP: 1 };

  test('draws what the plain definition draws, and says how likely it was', async () => {
    for (const key of cases) {
      const [count, vocabulary] = [size(1, key), key % 5 ? size(2, key) : 1200 + size(2, key)];
      const temperature = [1, 0, 0.6, 1.7][key % 4];
      const logits = tf.mul(random([count, vocabulary]), 1 + (key % 7)) as tf.Tensor2D;
      const uniforms = Float64Array.from({ length: count }, (_, i) => uniform(12, key, i));
      const drawn = await sampleTokens(logits, uniforms, { ...options, temperature });
      const values = (await logits.data()) as Float32Array;
      for (const [row, { token, logProb }] of drawn.entries()) {
        const own = values.subarray(row * vocabulary, (row + 1) * vocabulary);
        const expected = sampleToken(own, uniforms[row], { ...options, temperature });
        expect(token).toBe(expected.token); // no draw lies within float32's rounding of a border here
        expect(Math.abs(logProb - expected.logProb)).toBeLessThan(TOLERANCE);
      }
      logits.dispose();
    }
  });

  test.each([
    ['0 takes the first token that can be drawn', [-Infinity, -200, 0, 1], 0, 2],
    ['almost 1 takes the last one that can', [0, 1, -200, -Infinity], 1 - 2 ** -53, 1],
    ['a sure token is drawn, wherever it lies', [...Array(150).fill(-1e9), 3, ...Array(99).fill(-1e9)], 0.5, 150],
  ])('%s', async (_, logits, uniform, expected) => {
    const [{ token }] = await sampleTokens(tf.tensor2d([logits]), Float64Array.of(uniform), options);
    expect(token).toBe(expected);
  });

  test.each([0, 1])('logits that are not numbers end nothing, at temperature %d', async (temperature) => {
    const logits = tf.fill([2, 70], Number.NaN) as tf.Tensor2D;
    const drawn = await sampleTokens(logits, Float64Array.of(0.3, 0.9), { ...options, temperature });
    expect(drawn).toEqual([
      { token: 0, logProb: Number.NaN },
      { token: 0, logProb: Number.NaN },
    ]);
  });
});

test('AdamW', async () => {
  for (const key of cases) {
    const shape = [[size(1, key)], [size(1, key), size(2, key)], []][key % 3];
    const named = (tensor: tf.Tensor) => ({ w: tensor });
    const [param, gradient, m, v] = [random(shape), random(shape), random(shape), tf.square(random(shape))];
    const options = { learningRate: 0.1, weightDecay: key % 2 ? 0.1 : 0 };
    const update = () => {
      const state: AdamWState = { step: key, m: named(m.clone()), v: named(v.clone()) };
      const next = adamW(named(param.clone()), named(gradient), state, options);
      return [next.params.w, next.state.m.w, next.state.v.w];
    };
    await expectSame(update(), plainly(update));
  }
});

test('numbers that are none stay none', async () => {
  const x = tf.tensor2d([[1, Number.NaN, 2, 3, 4]]);
  const some = tf.ones([1, 5]) as tf.Tensor2D;
  for (const y of [rmsNorm(x, tf.ones([5]), 1e-5), swiGlu(x, some), swiGlu(some, x)]) {
    expect((await y.data()).some(Number.isNaN)).toBe(true);
  }
  const keys = tf.reshape(x, [1, 1, 5]) as tf.Tensor3D;
  expect((await attention(some, [{ k: keys, v: tf.ones([1, 1, 5]) }]).data()).some(Number.isNaN)).toBe(true);
  const scores = tokenLogProbs(linear(some, tf.ones([5, 5])), x as tf.Tensor, Int32Array.of(0));
  expect((await scores.data()).some(Number.isNaN)).toBe(true);
});
