import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { logits } from '../model/llama.ts';
import type { Model } from '../model/model.ts';
import { logSoftmax, truncate } from '../ops/sample_tokens/sample_tokens.ts';
import { permutation, uniform } from '../random.ts';
import { completionLogProbs } from '../training/log_probs.ts';
import { type GenerateOptions, type GenerateProgress, generate } from './generate.ts';

let model: Model;
beforeAll(async () => {
  await useBackend();
  model = await loadCheckpoint('lib/model/fixtures/llama_gqa_tied');
});

const prompts = [[17, 4, 200, 31, 9], [250], [3, 77, 118]];
/** One end token in about ten, so that rows end at different times. */
const eosTokenIds = Array.from({ length: 26 }, (_, i) => 10 * i);
const options: GenerateOptions = {
  temperature: 1.2,
  topK: 0,
  topP: 1,
  maxNewTokens: 12,
  eosTokenIds,
  random: (row, position) => uniform(5, row, position),
};

test('rows end with their end token, which is theirs, or at the limit, and leave the batch', async () => {
  const alive: number[] = [];
  const sampled: number[] = [];
  const onProgress = (progress: GenerateProgress) => {
    sampled.push(progress.sampled);
    alive.push(progress.alive);
    expect(progress).toMatchObject({ rows: 15, positions: alive.length });
  };
  const completions = await generate(model, prompts, 5, { ...options, onProgress });
  expect(completions).toHaveLength(15);
  for (const { tokens, logProbs, finishReason } of completions) {
    expect(logProbs).toHaveLength(tokens.length);
    expect(tokens.slice(0, -1).filter((id) => eosTokenIds.includes(id))).toEqual([]);
    if (eosTokenIds.includes(tokens.at(-1)!)) expect(finishReason).toBe('stop');
    else expect([finishReason, tokens.length]).toEqual(['length', 12]);
  }
  const lengths = completions.map(({ tokens }) => tokens.length);
  expect(new Set(completions.map(({ finishReason }) => finishReason)).size).toBe(2); // or the test shows nothing
  expect(new Set(lengths).size).toBeGreaterThan(3);
  const stopped = completions.filter(({ finishReason }) => finishReason === 'stop').map(({ tokens }) => tokens.length);
  alive.forEach((rows, t) => void expect(rows).toBe(15 - stopped.filter((length) => length <= t + 1).length));
  expect(sampled.at(-1)).toBe(lengths.reduce((sum, length) => sum + length, 0));
});

test('an end token on the last position is a stop; without end tokens, every row has the full length', async () => {
  const short = { ...options, maxNewTokens: 6 };
  const [free] = await generate(model, [prompts[0]], 1, { ...short, eosTokenIds: [] });
  expect([free.finishReason, free.tokens.length]).toEqual(['length', 6]);
  const [stopped] = await generate(model, [prompts[0]], 1, { ...short, eosTokenIds: free.tokens.slice(-1) });
  expect(stopped).toEqual({ ...free, finishReason: 'stop' });
});

test('end tokens in the prompt (as where padding is the end token) end nothing', async () => {
  const prompt = [10, 10, 31, 172, 20, 250];
  const free = await generate(model, [prompt], 6, { ...options, eosTokenIds: [] });
  const completions = await generate(model, [prompt], 6, options);
  completions.forEach(({ tokens }, i) => {
    const end = free[i].tokens.findIndex((id) => eosTokenIds.includes(id));
    expect(tokens).toEqual(end < 0 ? free[i].tokens : free[i].tokens.slice(0, end + 1));
  });
});

describe('what a row says depends on its own random numbers alone', () => {
  /** Completions of (prompt, sample) pairs, whatever batch they are in. */
  const sample = async (chosen: number[], count: number, first = 0) => {
    const completions = await generate(
      model,
      chosen.map((p) => prompts[p]),
      count,
      {
        ...options,
        random: (row, position) => uniform(5, chosen[Math.floor(row / count)], first + (row % count), position),
      },
    );
    return chosen.map((_, i) => completions.slice(i * count, (i + 1) * count).map(({ tokens }) => tokens));
  };

  test('not on the order of prompts, their number, or how many completions are sampled together', async () => {
    const all = await sample([0, 1, 2], 4);
    expect(new Set(all.flat().map((tokens) => tokens.length)).size).toBeGreaterThan(2);
    const reversed = await sample([2, 1, 0], 4);
    expect(reversed.reverse()).toEqual(all);
    for (const p of [0, 1, 2]) {
      expect(await sample([p], 4)).toEqual([all[p]]);
      expect([...(await sample([p], 3))[0], ...(await sample([p], 1, 3))[0]]).toEqual(all[p]);
    }
  });

  test('the same call twice says the same', async () => {
    expect(await generate(model, prompts, 3, options)).toEqual(await generate(model, prompts, 3, options));
  });

  test('the first token is not shared by the group', async () => {
    for (const group of await sample([0, 1, 2], 8)) {
      expect(new Set(group.map(([first]) => first)).size).toBeGreaterThan(4);
    }
  });
});

describe('recorded log-probabilities', () => {
  test.each([
    ['one prompt is left, which is shorter than one before it', [1]],
    ['prompts of one length are left, all shorter than one before them', [1, 3]],
  ])('are those of the model also where %s', async (_, left) => {
    const asked = [...prompts, [9]];
    const react = (place: number, { tokens }: { tokens: number[] }) =>
      !left.includes(Math.floor(place / 3)) && tokens.length === 2 ? ({ finish: 'stop' } as const) : undefined;
    const completions = await generate(model, asked, 3, { ...options, eosTokenIds: [], react });
    expect(completions.map(({ tokens }) => tokens.length)).toEqual(
      asked.flatMap((_, p) => new Array(3).fill(left.includes(p) ? 12 : 2)),
    );
    const rows = completions.map(({ tokens }, i) => ({ prompt: asked[Math.floor(i / 3)], completion: tokens }));
    const expected = (await completionLogProbs(model, rows, 1.2).logProbs.array()) as number[][];
    for (const [i, { logProbs }] of completions.entries()) {
      const worst = Math.max(...logProbs.map((logProb, t) => Math.abs(logProb - expected[i][t])));
      expect(worst).toBeLessThan(1e-4);
    }
  });

  test.each([
    { temperature: 1, topK: 0, topP: 1 },
    { temperature: 0.7, topK: 0, topP: 1 },
    { temperature: 1.3, topK: 12, topP: 0.9 },
  ])('are those that scoring recomputes, so that the ratio is 1: %o', async (sampling) => {
    const completions = await generate(model, prompts, 4, { ...options, ...sampling });
    const order = permutation(completions.length, 11);
    const sequences = order.map((i) => ({ prompt: prompts[Math.floor(i / 4)], completion: completions[i].tokens }));
    const { logProbs } = completionLogProbs(model, sequences, sampling.temperature);
    const scores = (await logProbs.array()) as number[][];
    order.forEach((i, r) => {
      completions[i].logProbs.forEach((logProb, t) => {
        expect(Math.abs(Math.exp(scores[r][t] - logProb) - 1)).toBeLessThan(1e-5);
      });
    });
  });
});

test('first tokens come as often as the model says (top-k 8, temperature 0.8)', async () => {
  const sampling = { temperature: 0.8, topK: 8, topP: 1 };
  const draws = 3000;
  const completions = await generate(model, [prompts[0]], draws, { ...options, ...sampling, maxNewTokens: 1 });
  const all = logits(model, prompts[0]);
  const logProbs = logSoftmax((await all.data()).slice(-256) as Float32Array, sampling.temperature);
  const kept = truncate(logProbs, sampling)!;
  const total = kept.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0);
  let counted = 0;
  const chiSquare = kept.reduce((sum, id) => {
    const expected = (draws * Math.exp(logProbs[id])) / total;
    const count = completions.filter(({ tokens }) => tokens[0] === id).length;
    counted += count;
    return sum + (count - expected) ** 2 / expected;
  }, 0);
  expect(counted).toBe(draws);
  expect(chiSquare).toBeLessThan(7 + 4 * Math.sqrt(14)); // 7 degrees of freedom, 4 standard deviations
});

test('no tensor is left behind, not even when a callback throws', async () => {
  const before = tf.memory().numTensors;
  await generate(model, prompts, 3, options);
  expect(tf.memory().numTensors).toBe(before);
  for (const after of [1, 4, 9]) {
    const onProgress = ({ sampled }: GenerateProgress) => {
      if (sampled > after * 3) throw new Error('stop');
    };
    await expect(generate(model, prompts, 3, { ...options, onProgress })).rejects.toThrow('stop');
    expect(tf.memory().numTensors).toBe(before);
  }
  const random = (row: number, position: number) => {
    if (position === 3) throw new Error('no more');
    return options.random(row, position);
  };
  await expect(generate(model, prompts, 3, { ...options, random })).rejects.toThrow('no more');
  expect(tf.memory().numTensors).toBe(before);
});

describe('forced tokens', () => {
  /** After a row's third token it is fed a list of its own length; after its first token from then on it is asked again. */
  const lists = [[], [7], [8, 9, 10, 20], Array.from({ length: 30 }, (_, i) => i)];
  const asked: [row: number, length: number][] = [];
  const react: GenerateOptions['react'] = (row, { tokens }) => {
    asked.push([row, tokens.length]);
    return tokens.length === 3 ? { force: lists[row % lists.length] } : undefined;
  };

  test('are fed in place of sampled ones, up to the limit; end tokens among them end nothing', async () => {
    asked.length = 0;
    const completions = await generate(model, prompts, 4, { ...options, eosTokenIds: [10, 20], react });
    for (const [row, { tokens, logProbs, mask, finishReason }] of completions.entries()) {
      const list = lists[row % 4];
      const own = tokens.filter((_, t) => mask[t] === 1);
      if (own.slice(0, 3).some((id) => [10, 20].includes(id))) continue;
      expect(tokens.slice(3, 3 + list.length)).toEqual(list.slice(0, 9));
      expect(mask.slice(0, 3 + list.length)).toEqual([1, 1, 1, ...list.map(() => 0)].slice(0, 12));
      expect(logProbs.map((logProb) => logProb === 0)).toEqual(mask.map((m) => m === 0));
      expect([10, 20].includes(own.at(-1)!)).toBe(finishReason === 'stop');
      // Asked after every token of its own, with nothing in between, and after no other.
      const lengths = asked.filter(([r]) => r === row).map(([, length]) => length);
      const ends = finishReason === 'stop' ? [tokens.length] : [];
      expect([...lengths, ...ends]).toEqual(tokens.flatMap((_, t) => (mask[t] === 1 ? [t + 1] : [])));
    }
  });

  test('condition what follows: the recorded log-probabilities are those of a full forward pass', async () => {
    const completions = await generate(model, prompts, 4, { ...options, eosTokenIds: [], react });
    const sequences = completions.map(({ tokens }, row) => ({
      prompt: prompts[Math.floor(row / 4)],
      completion: tokens,
    }));
    const grid = tf.tidy(() => completionLogProbs(model, sequences, 1.2).logProbs);
    const scores = (await grid.array()) as number[][];
    grid.dispose();
    for (const [row, { logProbs, mask }] of completions.entries()) {
      mask.forEach((m, t) => {
        if (m === 1) expect(Math.abs(logProbs[t] - scores[row][t])).toBeLessThan(1e-4);
      });
    }
  });

  test('leave other rows as they are, however slow the answer', async () => {
    const slow: GenerateOptions['react'] = async (row, completion) => {
      await new Promise((resolve) => setTimeout(resolve, (row * 7) % 3));
      return react(row, completion);
    };
    const some: GenerateOptions['react'] = (row, completion) => (row === 2 ? undefined : react(row, completion));
    const free = await generate(model, prompts, 4, options);
    const all = await generate(model, prompts, 4, { ...options, react });
    expect(await generate(model, prompts, 4, { ...options, react: slow })).toEqual(all);
    const mixed = await generate(model, prompts, 4, { ...options, react: some });
    expect(mixed[2].tokens).toEqual(free[2].tokens);
    expect(mixed[6].tokens).toEqual(all[6].tokens);
  });

  test('a reaction may end the row, for either reason', async () => {
    const reasons = ['stop', 'length'] as const;
    const finish: GenerateOptions['react'] = (row, { tokens }) =>
      tokens.length === 2 ? { finish: reasons[row % 2] } : undefined;
    const completions = await generate(model, prompts, 2, { ...options, eosTokenIds: [], react: finish });
    expect(completions.map(({ tokens, finishReason }) => [tokens.length, finishReason])).toEqual(
      completions.map((_, row) => [2, reasons[row % 2]]),
    );
  });

  test('an error in a reaction ends the call and leaves no tensor behind', async () => {
    const before = tf.memory().numTensors;
    const fail = async () => {
      throw new Error('broken');
    };
    await expect(generate(model, prompts, 2, { ...options, react: fail })).rejects.toThrow('broken');
    expect(tf.memory().numTensors).toBe(before);
  });
});

test.each([
  { temperature: 1, topK: 0 },
  { temperature: 1, topK: 5 },
  { temperature: 0, topK: 0 },
])('logits that are not finite end it with a sentence: %o', async (sampling) => {
  const norm = 'model.norm.weight';
  for (const value of [Number.NaN, 3e38]) {
    const params = { ...model.params, [norm]: tf.fill(model.params[norm].shape, value) };
    const before = tf.memory().numTensors;
    await expect(generate({ ...model, params }, prompts, 2, { ...options, ...sampling })).rejects.toThrow(
      /^the model's logits are not finite.*take other weights.*lower --learning-rate$/,
    );
    expect(tf.memory().numTensors).toBe(before);
  }
});
