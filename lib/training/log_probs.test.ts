import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { logits } from '../model/llama.ts';
import { uniform } from '../random.ts';
import { completionLogProbs, microBatches, type Sequence } from './log_probs.ts';

beforeAll(useBackend);

const draw = (below: number, ...key: number[]) => Math.floor(below * uniform(13, ...key));
/** Completions of `prompts` prompts, in no order, `tokens` long at most. */
const batch = (size: number, prompts: number, tokens: number, key: number): (Sequence & { id: number })[] =>
  Array.from({ length: size }, (_, id) => ({
    id,
    prompt: [draw(prompts, key, id, 0), 7],
    completion: Array.from({ length: 1 + draw(tokens, key, id, 1) }, (_, t) => draw(256, key, id, 2, t)),
  }));

describe('microBatches', () => {
  const paddedTokens = (rows: Sequence[]) => rows.length * Math.max(...rows.map(({ completion }) => completion.length));

  test('every row once, and no more padded tokens than allowed, unless a row alone has more', () => {
    const rows = batch(40, 6, 20, 0);
    for (let max = 1; max <= 100; max++) {
      const batches = microBatches(rows, max);
      expect(batches.flat().sort((a, b) => a.id - b.id)).toEqual(rows);
      for (const part of batches) if (part.length > 1) expect(paddedTokens(part)).toBeLessThanOrEqual(max);
    }
    expect(microBatches(rows, 1)).toHaveLength(40);
    expect(microBatches(rows, 40 * 20)).toHaveLength(1);
  });

  test('rows of a prompt follow one another, so that few micro-batches share a prompt', () => {
    const order = microBatches(batch(40, 6, 20, 3), 60)
      .flat()
      .map(({ prompt }) => prompt.join());
    const changes = order.filter((key, i) => key !== order[i - 1]).length;
    expect(changes).toBe(new Set(order).size);
  });
});

test('each token is scored by the logits before it, divided by the temperature, with their entropy', async () => {
  const model = await loadCheckpoint('lib/model/fixtures/llama_mha_untied');
  const sequences = batch(5, 2, 6, 4);
  for (const temperature of [1, 0.6]) {
    const { logProbs, entropies } = completionLogProbs(model, sequences, temperature);
    const [scores, spread] = [await logProbs.array(), await entropies.array()];
    for (const [r, { prompt, completion }] of sequences.entries()) {
      const all = logits(model, [...prompt, ...completion]);
      const distributions = tf.logSoftmax(tf.div(all, temperature));
      const expected = (await distributions.array()) as number[][];
      completion.forEach((id, t) => {
        const distribution = expected[prompt.length - 1 + t];
        expect(Math.abs(scores[r][t] - distribution[id])).toBeLessThan(2e-5);
        const entropy = -distribution.reduce((sum, logProb) => sum + Math.exp(logProb) * logProb, 0);
        expect(Math.abs(spread[r][t] - entropy)).toBeLessThan(2e-5);
      });
    }
  }
});
