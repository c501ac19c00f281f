/** Log-probabilities of given completions, differentiable: one prefill for each prompt, one extend for all tokens. */
import * as tf from '@tensorflow/tfjs';
import { sharePrompts } from '../model/layout.ts';
import { extend, lmHead, prefill } from '../model/llama.ts';
import type { Model } from '../model/model.ts';
import { moveRows } from '../ops/move_rows/move_rows.ts';
import { tokenLogProbs } from '../ops/token_log_probs/token_log_probs.ts';

/** Token ids of a prompt (at least one) and of what followed it (at least one). */
export type Sequence = { prompt: number[]; completion: number[] };

/**
 * Log-probability of every completion token given all tokens before it, and the entropy of the distribution it was
 * drawn from. Rows with the same prompt share its forward pass.
 * @param sequences - B prompts with their completions, of any lengths
 * @param temperature - logits are divided by it, as they were when sampling
 * @returns `logProbs` and `entropies` (nats), each of shape (B, T), T the longest completion; 0 where there is no token
 */
export function completionLogProbs(
  model: Model,
  sequences: Sequence[],
  temperature: number,
): { logProbs: tf.Tensor2D; entropies: tf.Tensor2D } {
  const { prompts, rows } = sharePrompts(sequences);
  // Token t is predicted by the hidden state of the token before it: the inputs are the targets, shifted by one.
  const inputs = sequences.flatMap(({ prompt, completion }) => [prompt.at(-1)!, ...completion.slice(0, -1)]);
  const targets = Int32Array.from(sequences.flatMap(({ completion }) => completion));
  const prefix = prefill(
    model,
    prompts.map((prompt) => prompt.slice(0, -1)),
  );
  const { hidden } = extend(model, prefix, undefined, { rows, tokens: inputs });
  const packed = tokenLogProbs(hidden, lmHead(model), targets, { temperature, frozenHead: model.lora !== undefined });
  const [logProbs, entropies] = unpack(
    packed,
    rows.map(({ length }) => length),
  );
  return { logProbs, entropies };
}

/**
 * Log-probabilities of every completion token under a policy that is not trained: no gradient.
 * @param options.microBatchTokens - see {@link microBatches}
 * @returns one list a sequence, as long as its completion
 */
export async function logProbsOf(
  model: Model,
  sequences: Sequence[],
  { microBatchTokens, temperature }: { microBatchTokens: number; temperature: number },
): Promise<number[][]> {
  return readInMicroBatches(sequences, microBatchTokens, async (batch) => {
    const logProbs = tf.tidy(() => completionLogProbs(model, batch, temperature).logProbs);
    const rows = await logProbs.array().finally(() => logProbs.dispose());
    return batch.map(({ completion }, i) => rows[i].slice(0, completion.length));
  });
}

/**
 * Reads something of every sequence, one micro-batch in memory at a time.
 * @param read - what there is to read of a micro-batch, in its order
 * @returns the same in the order of the sequences
 */
export async function readInMicroBatches<T>(
  sequences: Sequence[],
  maxTokens: number,
  read: (batch: Sequence[]) => Promise<ArrayLike<T>>,
): Promise<T[]> {
  const found = new Map<Sequence, T>();
  for (const batch of microBatches(sequences, maxTokens)) {
    const values = await read(batch);
    for (const [i, sequence] of batch.entries()) found.set(sequence, values[i]);
    await tf.nextFrame(); // see accumulateGradients
  }
  return sequences.map((sequence) => found.get(sequence)!);
}

/** Spreads (2, N) packed values over two zero-padded (B, T) arrays. */
function unpack(values: tf.Tensor2D, lengths: number[]): [tf.Tensor2D, tf.Tensor2D] {
  const [rows, time, packed] = [lengths.length, Math.max(...lengths), values.shape[1]];
  const index = new Int32Array(rows * time).fill(packed);
  const inverse = new Int32Array(packed);
  let n = 0;
  lengths.forEach((length, row) => {
    for (let t = 0; t < length; t++, n++) {
      index[row * time + t] = n;
      inverse[n] = row * time + t;
    }
  });
  const toGrid = { rows: tf.tensor1d(index, 'int32'), holes: rows * time > packed };
  const fromGrid = { rows: tf.tensor1d(inverse, 'int32'), holes: false };
  const grid = moveRows(tf.transpose(values), toGrid, fromGrid);
  return [0, 1].map((column) => tf.reshape(tf.slice(grid, [0, column], [-1, 1]), [rows, time])) as [
    tf.Tensor2D,
    tf.Tensor2D,
  ];
}

/**
 * Splits completions into micro-batches that fit in memory. Those of one prompt stay together where they can, and prompts
 * whose completions are about as long stand side by side, so that little of a micro-batch is padding.
 * @param maxTokens - padded tokens (rows × longest completion) that a micro-batch may hold
 */
export function microBatches<Row extends Sequence>(sequences: Row[], maxTokens: number): Row[][] {
  const byPrompt = new Map<string, Row[]>();
  for (const row of sequences) {
    const key = row.prompt.join();
    byPrompt.set(key, [...(byPrompt.get(key) ?? []), row]);
  }
  const longest = (rows: Row[]) => Math.max(...rows.map(({ completion }) => completion.length));
  const ordered = [...byPrompt.values()].sort((a, b) => longest(b) - longest(a)).flat();
  const batches: Row[][] = [];
  for (const row of ordered) {
    const current = batches.at(-1);
    if (current && (current.length + 1) * longest([...current, row]) <= maxTokens) current.push(row);
    else batches.push([row]);
  }
  return batches;
}

/** Rows of numbers as one tensor of shape (B, width), with zeros behind those that are shorter. */
export const padRows = (rows: number[][], width: number): tf.Tensor2D =>
  tf.tensor2d(rows.map((row) => [...row, ...new Array<number>(width - row.length).fill(0)]));
