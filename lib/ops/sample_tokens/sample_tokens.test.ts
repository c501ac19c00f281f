import { readFileSync } from 'node:fs';
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { uniform } from '../../random.ts';
import { cases, random, size, WITH_KERNELS } from '../comparisons.ts';
import { logSoftmax, sampleToken, sampleTokens, truncate } from './sample_tokens.ts';

beforeAll(useBackend);

type Case = { temperature: number; top_k: number; top_p: number; repetition_penalty: number; probs: number[][] };
const oracle = JSON.parse(readFileSync('lib/training/fixtures/sampling_warpers.json', 'utf8')) as {
  logits: number[][];
  cases: Case[];
};

/** Probabilities of the tokens that are left, 0 for the others. */
function probabilities(logits: number[], { temperature, top_k, top_p }: Omit<Case, 'probs' | 'repetition_penalty'>) {
  const logProbs = logSoftmax(Float32Array.from(logits), temperature);
  const kept = truncate(logProbs, { topK: top_k, topP: top_p }) ?? [...logProbs.keys()];
  const total = kept.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0);
  const probs = new Array<number>(logits.length).fill(0);
  for (const id of kept) probs[id] = Math.exp(logProbs[id]) / total;
  return probs;
}

describe('temperature, top-k and top-p leave what the logits processors of transformers leave', () => {
  const cases = oracle.cases.filter(({ repetition_penalty }) => repetition_penalty === 1);
  test.each(cases)('temperature $temperature, top-k $top_k, top-p $top_p', (options) => {
    oracle.logits.forEach((logits, row) => {
      const actual = probabilities(logits, options);
      expect(actual.map((p) => p > 0)).toEqual(options.probs[row].map((p) => p > 0));
      actual.forEach((p, id) => void expect(Math.abs(p - options.probs[row][id])).toBeLessThan(1e-6));
    });
  });
});

test.each([
  { temperature: 1, topK: 0, topP: 1 },
  { temperature: 0.7, topK: 6, topP: 1 },
  { temperature: 1.3, topK: 0, topP: 0.8 },
])('tokens come as often as they should: %o', (options) => {
  const draws = 20_000;
  const logits = oracle.logits[0];
  const expected = probabilities(logits, { ...options, top_k: options.topK, top_p: options.topP });
  const counts = new Array<number>(logits.length).fill(0);
  for (let i = 0; i < draws; i++) {
    counts[sampleToken(Float32Array.from(logits), uniform(1, i), options).token]++;
  }
  counts.forEach((count, id) => void (expected[id] === 0 && expect(count).toBe(0)));
  const possible = [...expected.keys()].filter((id) => expected[id] > 0);
  const chiSquare = possible.reduce((sum, id) => {
    return sum + (counts[id] - draws * expected[id]) ** 2 / (draws * expected[id]);
  }, 0);
  // Its mean is its degrees of freedom, its standard deviation √(2 · that): 4 of these are beyond chance.
  const freedom = possible.length - 1;
  expect(chiSquare).toBeLessThan(freedom + 4 * Math.sqrt(2 * freedom));
});

test('the log-probability is that of the full distribution, whatever is cut off', () => {
  const logits = Float32Array.from(oracle.logits[1]);
  const full = logSoftmax(logits, 0.7);
  for (let i = 0; i < 20; i++) {
    const { token, logProb } = sampleToken(logits, i / 20, { temperature: 0.7, topK: 5, topP: 0.9 });
    expect(logProb).toBe(full[token]);
  }
});

test('greedy takes the first of the most likely tokens, and says how likely it is at temperature 1', () => {
  const { token, logProb } = sampleToken(Float32Array.of(0, 3, 3, -1), 0.99, { temperature: 0, topK: 0, topP: 1 });
  expect(token).toBe(1);
  expect(logProb).toBeCloseTo(3 - Math.log(1 + 2 * Math.exp(3) + Math.exp(-1)), 12);
});

test('the edges of [0, 1): never a token of probability 0', () => {
  const logits = Float32Array.of(-Infinity, 0, 0, -Infinity);
  for (const options of [
    { topK: 0, topP: 1 },
    { topK: 4, topP: 1 },
    { topK: 0, topP: 0.99 },
  ]) {
    expect(sampleToken(logits, 0, { temperature: 1, ...options }).token).toBe(1);
    expect(sampleToken(logits, 1 - 2 ** -53, { temperature: 1, ...options }).token).toBe(2);
  }
});

describe.skipIf(!WITH_KERNELS)('sampleTokens by a kernel', () => {
  const options = { temperature: 1, topK: 0, topP: 1 };

  test('draws what the plain definition draws, and says how likely it was', async () => {
    for (const key of cases) {
      const [count, vocabulary] = [size(1, key), key % 5 ? size(2, key) : 1200 + size(2, key)];
      const temperature = [1, 0, 0.6, 1.7][key % 4];
      const logits = tf.mul(random([count, vocabulary]), 1 + (key % 7)) as tf.Tensor2D;
      const uniforms = Float64Array.from({ length: count }, (_, i) => uniform(12, key, i));
      const drawn = await sampleTokens(logits, uniforms, { ...options, temperature }).read();
      const values = (await logits.data()) as Float32Array;
      for (const [row, { token, logProb }] of drawn.entries()) {
        const own = values.subarray(row * vocabulary, (row + 1) * vocabulary);
        const expected = sampleToken(own, uniforms[row], { ...options, temperature });
        expect(token).toBe(expected.token); // no draw lies within float32's rounding of a border here
        expect(Math.abs(logProb - expected.logProb)).toBeLessThan(1e-5);
      }
      logits.dispose();
    }
  });

  test('of many draws, only those that lie on a border between two tokens go to the other one', async () => {
    const [count, vocabulary] = [1000, 300];
    const logits = random([count, vocabulary]) as tf.Tensor2D;
    const uniforms = Float64Array.from({ length: count }, (_, i) => uniform(13, i));
    const drawn = await sampleTokens(logits, uniforms, options).read();
    const values = (await logits.data()) as Float32Array;
    let others = 0;
    for (const [row, { token }] of drawn.entries()) {
      const own = values.subarray(row * vocabulary, (row + 1) * vocabulary);
      const expected = sampleToken(own, uniforms[row], options).token;
      if (token === expected) continue;
      others++;
      const before = logSoftmax(own, 1).subarray(0, Math.max(token, expected));
      const border = before.reduce((sum, logProb) => sum + Math.exp(logProb), 0);
      expect(Math.abs(border - uniforms[row])).toBeLessThan(1e-6);
    }
    expect(others / count).toBeLessThan(3e-3);
    logits.dispose();
  });

  test.each([
    ['0 takes the first token that can be drawn', [-Infinity, -200, 0, 1], 0, 2],
    ['almost 1 takes the last one that can', [0, 1, -200, -Infinity], 1 - 2 ** -53, 1],
    ['a sure token is drawn, wherever it lies', [...Array(150).fill(-1e9), 3, ...Array(99).fill(-1e9)], 0.5, 150],
  ])('%s', async (_, logits, uniform, expected) => {
    const [{ token }] = await sampleTokens(tf.tensor2d([logits]), Float64Array.of(uniform), options).read();
    expect(token).toBe(expected);
  });

  test.each([0, 1])('logits that are not numbers end nothing, at temperature %d', async (temperature) => {
    const logits = tf.fill([2, 70], Number.NaN) as tf.Tensor2D;
    const drawn = await sampleTokens(logits, Float64Array.of(0.3, 0.9), { ...options, temperature }).read();
    expect(drawn).toEqual([
      { token: 0, logProb: Number.NaN },
      { token: 0, logProb: Number.NaN },
    ]);
  });

  test('no rows', async () => {
    const drawn = sampleTokens(tf.zeros([0, 7]), new Float64Array(0), options);
    expect(await drawn.read()).toEqual([]);
  });
});
