/** From logits to a token: temperature, top-k, top-p, and the log-probability that training will need. */
import type * as tf from '@tensorflow/tfjs';
import { kernelOf } from '../fusible.ts';

export type SamplingOptions = {
  /** Divides the logits; 0 takes the most likely token (greedy). */
  temperature: number;
  /** Draws from the k most likely tokens only; 0 from all. */
  topK: number;
  /** Draws from the smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020); 1 from all. */
  topP: number;
};

/**
 * Log-probabilities of the whole distribution at a temperature.
 * @param logits - V logits of one position
 * @returns V log-probabilities (nats)
 */
export function logSoftmax(logits: Float32Array, temperature: number): Float64Array {
  let max = -Infinity;
  for (const logit of logits) if (logit > max) max = logit;
  const scaled = new Float64Array(logits.length);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) {
    scaled[i] = (logits[i] - max) / temperature;
    sum += Math.exp(scaled[i]);
  }
  const logSum = Math.log(sum);
  for (let i = 0; i < scaled.length; i++) scaled[i] -= logSum;
  return scaled;
}

/**
 * The tokens that top-k and top-p leave, in that order, as Hugging Face's `generate` applies them.
 * @param logProbs - V log-probabilities
 * @returns their ids, most likely first; null if all V are left
 */
export function truncate(
  logProbs: Float64Array,
  { topK, topP }: Omit<SamplingOptions, 'temperature'>,
): number[] | null {
  if ((topK === 0 || topK >= logProbs.length) && topP >= 1) return null;
  let kept = Array.from(logProbs.keys()).sort((a, b) => logProbs[b] - logProbs[a] || a - b);
  if (topK > 0) kept = kept.slice(0, topK);
  if (topP >= 1) return kept;
  const total = kept.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0);
  let size = 0;
  for (let reached = 0; reached < topP && size < kept.length; size++) reached += Math.exp(logProbs[kept[size]]) / total;
  return kept.slice(0, size);
}

/**
 * Chooses the next token of one row.
 * @param logits - V logits
 * @param uniform - a random number in [0, 1); not used when greedy
 * @returns the token, and its log-probability under the *full* distribution at this temperature (1 when greedy):
 *   truncation shapes what is drawn, not what is trained on
 */
export function sampleToken(
  logits: Float32Array,
  uniform: number,
  { temperature, topK, topP }: SamplingOptions,
): { token: number; logProb: number } {
  const logProbs = logSoftmax(logits, temperature || 1);
  const token = temperature === 0 ? argMax(logits) : draw(logProbs, uniform, truncate(logProbs, { topK, topP }));
  return { token, logProb: logProbs[token] };
}

/** Logits of shape (n, V) → n tokens, and their log-probabilities: {@link sampleToken} of each row, without truncation. */
export const sampleTokensKernel = kernelOf<
  [tf.Tensor2D],
  [{ uniforms: Float64Array; temperature: number }],
  [tokens: tf.Tensor1D, logProbs: tf.Tensor1D]
>('SampleTokens');

/** Tokens that are drawn, one for each row. */
export type Drawn = {
  /** Where the backend has drawn them, its tensor, shape (n), until they are read. */
  tokens?: tf.Tensor1D;
  /** Waits for them; to be called once. */
  read(): Promise<{ token: number; logProb: number }[]>;
  /** In place of `read`. */
  dispose(): void;
};

/**
 * Chooses the next token of each row: {@link sampleToken}, on the backend where that has a kernel for it.
 * @param logits - shape (n, V)
 * @param uniforms - a random number in [0, 1) for each row
 */
export function sampleTokens(logits: tf.Tensor2D, uniforms: Float64Array, options: SamplingOptions): Drawn {
  const vocabulary = logits.shape[1];
  const { temperature, topK, topP } = options;
  const kernel = sampleTokensKernel.find();
  if (kernel && (temperature === 0 || ((topK === 0 || topK >= vocabulary) && topP >= 1))) {
    const outputs = kernel([logits], { uniforms, temperature });
    const dispose = () => {
      for (const output of outputs) output.dispose();
    };
    const read = async () => {
      const [tokens, logProbs] = await Promise.all(outputs.map((output) => output.data())).finally(dispose);
      return Array.from(tokens, (token, row) => ({ token, logProb: logProbs[row] }));
    };
    return { tokens: outputs[0], read, dispose };
  }
  const kept = logits.clone();
  const dispose = () => kept.dispose();
  const read = async () => {
    const values = (await kept.data().finally(dispose)) as Float32Array;
    return Array.from(uniforms, (uniform, row) =>
      sampleToken(values.subarray(row * vocabulary, (row + 1) * vocabulary), uniform, options),
    );
  };
  return { read, dispose };
}

const argMax = (values: Float32Array): number =>
  values.reduce((best, value, i) => (value > values[best] ? i : best), 0);

/** Inverse of the cumulative distribution over the kept tokens (over all, in order of their ids, if null). */
function draw(logProbs: Float64Array, uniform: number, kept: number[] | null): number {
  const ids = kept ?? logProbs.keys();
  let left = uniform * (kept ? kept.reduce((sum, id) => sum + Math.exp(logProbs[id]), 0) : 1);
  let last = 0;
  for (const id of ids) {
    const probability = Math.exp(logProbs[id]);
    // Rounding may leave a rest after the last token: it belongs to the last one that can be drawn at all.
    if (probability > 0) last = id;
    left -= probability;
    if (left < 0) break;
  }
  return last;
}
