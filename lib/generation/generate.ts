/** Batched sampling with a key/value cache in which the completions of a prompt share its keys. */
import { setImmediate } from 'node:timers/promises';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import type { Row } from '../model/layout.ts';
import { extend, keepRows, lmHead, type Past, type Prefix, prefill } from '../model/llama.ts';
import { withMergedLora } from '../model/lora.ts';
import type { Model } from '../model/model.ts';
import { linear } from '../ops/linear/linear.ts';
import { type Drawn, type SamplingOptions, sampleTokens } from '../ops/sample_tokens/sample_tokens.ts';

/**
 * One completion: token ids (the end-of-sequence token included, if it came), and the log-prob of each. `mask` is 1 on
 * tokens that the policy chose, 0 on forced ones, whose log-probability is not known and stands as 0.
 */
export type Completion = { tokens: number[]; logProbs: number[]; mask: number[]; finishReason: 'stop' | 'length' };

/** What follows a token that was sampled: tokens that are fed next, in place of sampled ones, or the end. */
export type Reaction = { force: number[] } | { finish: Completion['finishReason'] };

/** How far a batch of `rows` completions is: token positions done, tokens sampled so far, completions still going. */
export type GenerateProgress = { rows: number; positions: number; sampled: number; alive: number };

export type GenerateOptions = SamplingOptions & {
  maxNewTokens: number;
  /** A completion ends with any of these; none for completions of a fixed length. */
  eosTokenIds: number[];
  /** The uniform random number in [0, 1) of a completion (its place in the result) at a position in it. */
  random: (place: number, position: number) => number;
  /**
   * Called after each token that was sampled, unless that ended the completion, which is given as it is so far. All others
   * wait for the slowest answer.
   */
  react?: (place: number, completion: Completion) => Reaction | undefined | Promise<Reaction | undefined>;
  /** Called after each token position, and before the next one is begun. */
  onProgress?: (progress: GenerateProgress) => void;
};

/**
 * Samples completions of each prompt. What is drawn for one depends on `random` alone, not on the batch that it is in.
 * @param prompts - P lists of at least one token id
 * @param count - completions of each prompt (G)
 * @returns P · G completions: those of prompt 0 first
 * @throws {UserError} if the model's logits are not finite
 */
export const generate = (
  model: Model,
  prompts: number[][],
  count: number,
  options: GenerateOptions,
): Promise<Completion[]> => withMergedLora(model, (merged) => sample(merged, prompts, count, options));

async function sample(
  model: Model,
  prompts: number[][],
  count: number,
  options: GenerateOptions,
): Promise<Completion[]> {
  const { maxNewTokens, random, react, onProgress } = options;
  const isEnd = (token: number) => options.eosTokenIds.includes(token);
  const completions: Completion[] = prompts.flatMap(() =>
    Array.from({ length: count }, () => ({ tokens: [], logProbs: [], mask: [], finishReason: 'length' as const })),
  );
  // The last prompt token is fed by each row itself: its hidden state is what predicts the first completion token.
  const inputs = prompts.map((prompt) => prompt.slice(0, -1));
  let prefix: Prefix | undefined = tf.tidy(() => prefill(model, inputs));
  let past: Past | undefined;
  let rows: Row[] = completions.map((_, i) => ({ prompt: Math.floor(i / count), length: 1 }));
  let batch = completions.map((_, i) => i); // the place of each row's completion: rows leave the batch, places stay
  const ended = completions.map(() => false);
  let tokens = rows.map(({ prompt }) => prompts[prompt].at(-1)!);
  const forced: number[][] = completions.map(() => []); // what each is still to be fed
  let sampled = 0;
  /** Feeds each row's newest token, and draws the next one. */
  const advance = (position: number, tokens: number[] | tf.Tensor1D): Drawn => {
    const uniforms = Float64Array.from(batch, (place) => (ended[place] ? 0 : random(place, position)));
    const { own, hidden } = tf.tidy(() => extend(model, prefix, past, { rows, tokens, room: maxNewTokens }));
    tf.dispose(past?.layers);
    past = own;
    try {
      return sampleRows(model, hidden, uniforms, options);
    } finally {
      hidden.dispose();
    }
  };
  // If nobody is asked between two positions, a GPU goes on with what it has drawn before that is read here, and need not wait.
  // What it draws for rows that turn out to have ended is ignored.
  const runsAhead = tf.getBackend() === 'webgpu' && !react && !onProgress;
  let ahead: Drawn | undefined;
  let narrow = false;
  let reading: ReturnType<Drawn['read']> = Promise.resolve([]);
  try {
    for (let [position, alive] = [0, batch.length]; position < maxNewTokens && alive > 0; position++) {
      const due = batch.map((place) => forced[place].shift());
      const idle = batch.map((place, i) => ended[place] || due[i] !== undefined);
      const drawing = ahead ?? advance(position, tokens);
      reading = drawing.read();
      ahead = undefined;
      if (runsAhead && !narrow && drawing.tokens && position + 1 < maxNewTokens) {
        await Promise.resolve(); // what is to be read is read before more is computed
        ahead = advance(position + 1, drawing.tokens);
      }
      const drawn = await reading;
      tokens = batch.map((place, i) => {
        if (ended[place]) return tokens[i];
        const { token, logProb } = due[i] === undefined ? drawn[i] : { token: due[i], logProb: 0 };
        if (!Number.isFinite(logProb)) throw new UserError(NOT_FINITE);
        const { tokens: own, logProbs, mask } = completions[place];
        own.push(token);
        logProbs.push(logProb);
        mask.push(due[i] === undefined ? 1 : 0);
        sampled += mask[position];
        return token;
      });
      const reactTo = async (place: number, i: number) => {
        // A forced token ends nothing: a tool's answer may hold any token.
        if (idle[i]) return;
        const reaction = isEnd(tokens[i]) ? ({ finish: 'stop' } as const) : await react?.(place, completions[place]);
        if (reaction && 'force' in reaction) forced[place] = [...reaction.force];
        if (!reaction || !('finish' in reaction)) return;
        ended[place] = true;
        completions[place].finishReason = reaction.finish;
      };
      await Promise.all(batch.map(reactTo));
      const keep = batch.flatMap((place, i) => (ended[place] ? [] : [i]));
      alive = keep.length;
      // Narrowing copies all keys and values: it waits until enough rows have ended to be worth it.
      narrow = alive > 0 && alive <= (1 - LEAVING) * batch.length;
      if (narrow && !ahead) {
        batch = keep.map((i) => batch[i]);
        tokens = keep.map((i) => tokens[i]);
        const narrowed = keepRows(model, prefix, past!, { rows, keep });
        tf.dispose([past!.layers, prefix?.layers ?? []]);
        ({ prefix, past, rows } = narrowed);
        narrow = false;
      }
      onProgress?.({ rows: completions.length, positions: position + 1, sampled, alive });
      await setImmediate(); // lets signals and timers in between two positions
    }
  } finally {
    await reading.catch(() => {}); // it lets go of what it reads
    ahead?.dispose();
    tf.dispose([past?.layers ?? [], prefix?.layers ?? []]);
  }
  return completions;
}

const NOT_FINITE =
  "the model's logits are not finite, so nothing can be sampled: before the first step, take other weights (these are damaged, or too large for float32); later, --resume an earlier checkpoint with a lower --learning-rate";

/** The part of a batch's rows that must have ended before they leave it. */
const LEAVING = 1 / 8;

/** Logits in memory at one time: 64 MB of them. */
const MAX_LOGITS = 16 * 2 ** 20;

/**
 * Draws a token for each row. Of logits, {@link MAX_LOGITS} exist at one time: those of many rows over a large vocabulary
 * would not fit.
 * @param hidden - shape (N, H)
 * @param uniforms - N random numbers
 */
function sampleRows(model: Model, hidden: tf.Tensor2D, uniforms: Float64Array, options: SamplingOptions): Drawn {
  const count = hidden.shape[0];
  const size = Math.max(1, Math.floor(MAX_LOGITS / model.config.vocabSize));
  const sampleSome = (all: tf.Tensor2D, begin: number): Drawn => {
    const rows = Math.min(size, count - begin);
    const logits = tf.tidy(() => {
      const some = rows === count ? all : tf.slice(all, [begin, 0], [rows, all.shape[1]]);
      return linear(some, lmHead(model));
    });
    try {
      return sampleTokens(logits, uniforms.subarray(begin, begin + rows), options);
    } finally {
      logits.dispose();
    }
  };
  if (size >= count) return sampleSome(hidden, 0);
  const kept = hidden.clone();
  const dispose = () => kept.dispose();
  const read = async () => {
    const results: { token: number; logProb: number }[] = [];
    for (let begin = 0; begin < count; begin += size) {
      results.push(...(await sampleSome(kept, begin).read()));
    }
    return results;
  };
  return { read: () => read().finally(dispose), dispose };
}
