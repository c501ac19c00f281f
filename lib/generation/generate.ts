/** Batched sampling with a key/value cache in which the completions of a prompt share its keys. */
import { setImmediate } from 'node:timers/promises';
import * as tf from '@tensorflow/tfjs';
import type { Row } from '../model/layout.ts';
import { extend, keepRows, lmHead, type Model, type Past, type Prefix, prefill } from '../model/llama.ts';
import { linear } from '../model/ops.ts';
import { type SamplingOptions, sampleToken } from './sampling.ts';

/** What one row said: token ids (the end-of-sequence token included, if it came), and how likely each was. */
export type Completion = { tokens: number[]; logProbs: number[]; finishReason: 'stop' | 'length' };

export type GenerateOptions = SamplingOptions & {
  maxNewTokens: number;
  /** A row ends with any of these; none for completions of a fixed length. */
  eosTokenIds: number[];
  /** The uniform random number in [0, 1) of a row (its index in the result) at a position of its completion. */
  random: (row: number, position: number) => number;
  /** Called after each token position with the number of tokens sampled so far and of rows still going. */
  onProgress?: (sampled: number, alive: number) => void;
};

/**
 * Samples completions of each prompt. A row's draws depend on `random` alone, not on the batch it shares.
 * @param prompts - P lists of at least one token id
 * @param count - completions of each prompt (G)
 * @returns P · G completions: those of prompt 0 first
 */
export async function generate(
  model: Model,
  prompts: number[][],
  count: number,
  options: GenerateOptions,
): Promise<Completion[]> {
  const { maxNewTokens, eosTokenIds, random, onProgress } = options;
  const completions: Completion[] = prompts.flatMap(() =>
    Array.from({ length: count }, () => ({ tokens: [], logProbs: [], finishReason: 'length' as const })),
  );
  // The last prompt token is fed by each row itself: its hidden state is what predicts the first completion token.
  let prefix: Prefix | undefined = tf.tidy(() =>
    prefill(
      model,
      prompts.map((prompt) => prompt.slice(0, -1)),
    ),
  );
  let past: Past | undefined;
  let rows: Row[] = completions.map((_, i) => ({ prompt: Math.floor(i / count), length: 1 }));
  let alive = completions.map((_, i) => i);
  let tokens = rows.map(({ prompt }) => prompts[prompt].at(-1)!);
  let sampled = 0;
  try {
    for (let position = 0; position < maxNewTokens && alive.length > 0; position++) {
      const { own, logits } = tf.tidy(() => {
        const { hidden, own } = extend(model, prefix, past, { rows, tokens });
        return { own, logits: linear(hidden, lmHead(model)) };
      });
      tf.dispose(past?.layers);
      past = own;
      const values = (await logits.data()) as Float32Array;
      const vocabulary = logits.shape[1];
      logits.dispose();
      tokens = alive.map((row, i) => {
        const { token, logProb } = sampleToken(
          values.subarray(i * vocabulary, (i + 1) * vocabulary),
          random(row, position),
          options,
        );
        completions[row].tokens.push(token);
        completions[row].logProbs.push(logProb);
        return token;
      });
      sampled += alive.length;
      const keep = [...alive.keys()].filter((i) => !eosTokenIds.includes(tokens[i]));
      if (keep.length < alive.length) {
        for (const [i, row] of alive.entries()) {
          if (eosTokenIds.includes(tokens[i])) completions[row].finishReason = 'stop';
        }
        alive = keep.map((i) => alive[i]);
        tokens = keep.map((i) => tokens[i]);
        if (keep.length > 0) {
          const narrowed = keepRows(model, prefix, past, { rows, keep });
          tf.dispose([past.layers, prefix?.layers ?? [], prefix?.bias ?? []]);
          ({ prefix, past, rows } = narrowed);
        }
      }
      onProgress?.(sampled, alive.length);
      await setImmediate(); // lets signals and timers in between two positions
    }
  } finally {
    tf.dispose([past?.layers ?? [], prefix?.layers ?? [], prefix?.bias ?? []]);
  }
  return completions;
}
