/** The last layer: log-probabilities of tokens, without keeping the logits of a large vocabulary. */
import * as tf from '@tensorflow/tfjs';
import { blockSum } from '../block_sum.ts';
import { differentiable, fusible } from '../fusible.ts';

/** Logits in memory at one time, 16 MB of them: their gradient needs several such arrays. */
const MAX_LOGITS = 4 * 2 ** 20;

/**
 * Log-probability of each token under `softmax(hidden Wᵀ / temperature)`, and the entropy of that distribution.
 * The logits are never kept: the gradient computes them again, chunk by chunk.
 * @param hidden - shape (N, H)
 * @param head - W, shape (V, H)
 * @param tokens - the N token ids
 * @param options - `maxLogits`: more tokens than have so many logits go through the head in chunks; the head
 *   gets no gradient if `frozenHead`
 * @returns shape (2, N): log-probabilities in row 0, entropies (nats) in row 1
 * @throws {RangeError} if a token is not one of the V
 */
export function tokenLogProbs(
  hidden: tf.Tensor2D,
  head: tf.Tensor,
  tokens: Int32Array,
  {
    temperature = 1,
    maxLogits = MAX_LOGITS,
    frozenHead = false,
  }: { temperature?: number; maxLogits?: number; frozenHead?: boolean } = {},
): tf.Tensor2D {
  const [count, width] = hidden.shape;
  const vocabulary = head.shape[0];
  const outside = tokens.find((id) => id < 0 || id >= vocabulary);
  if (outside !== undefined) throw new RangeError(`token ${outside} is outside 0 … ${vocabulary - 1}`);
  const size = Math.max(1, Math.floor(maxLogits / vocabulary));
  const begins = Array.from({ length: Math.max(1, Math.ceil(count / size)) }, (_, i) => i * size);
  const chunkOf = (x: tf.Tensor, begin: number, axis: 0 | 1) => {
    const length = Math.min(size, count - begin);
    return tf.slice(x, axis === 0 ? [begin, 0] : [0, begin], axis === 0 ? [length, width] : [2, length]);
  };
  const ids = (begin: number) => tf.tensor1d(tokens.subarray(begin, begin + size), 'int32');
  const logits = (part: tf.Tensor, head: tf.Tensor) => tf.matMul(part as tf.Tensor2D, head as tf.Tensor2D, false, true);
  const concat = (parts: tf.Tensor[], axis: 0 | 1) => (parts.length === 1 ? parts[0] : tf.concat(parts, axis));
  // Each chunk in a tidy of its own: what is as large as the logits is freed as soon as it has been used.
  const op = differentiable(([hidden, head_ = head]: tf.Tensor[]) => {
    const values = begins.map((begin) =>
      tf.tidy(() => tokenLogProbsForward([logits(chunkOf(hidden, begin, 0), head_), ids(begin)], { temperature })[0]),
    );
    const value = concat(values, 1);
    const gradient = (dy: tf.Tensor, [hidden, head, value]: tf.Tensor[]) => {
      let dHead: tf.Tensor | undefined;
      const dHidden = begins.map((begin) => {
        const [dPart, sum] = tf.tidy(() => {
          const part = chunkOf(hidden, begin, 0);
          const dLogits = tf.tidy(() => {
            const [dOwn, own] = [chunkOf(dy, begin, 1), chunkOf(value, begin, 1)];
            return tokenLogProbsGradient([dOwn, logits(part, head), ids(begin), own], { temperature })[0];
          });
          const dPart = tf.matMul(dLogits as tf.Tensor2D, head as tf.Tensor2D);
          if (frozenHead) return [dPart];
          const dW = tf.matMul(dLogits as tf.Tensor2D, part as tf.Tensor2D, true, false);
          return [dPart, dHead ? tf.add(dHead, dW) : dW];
        });
        dHead?.dispose(); // as large as the head: one at a time
        dHead = sum;
        return dPart;
      });
      return dHead ? [concat(dHidden, 0), dHead] : [concat(dHidden, 0)];
    };
    return { value, kept: [hidden, head_, value], gradient };
  });
  return op(frozenHead ? [hidden] : [hidden, head]) as tf.Tensor2D;
}

/** Logits of shape (n, V) and n tokens → their log-probabilities and entropies, shape (2, n). */
export const tokenLogProbsForward = fusible(
  'TokenLogProbs',
  ([logits, tokens]: [tf.Tensor, tf.Tensor], { temperature }: { temperature: number }): [tf.Tensor] => {
    const logProbs = logSoftmax(logits, temperature);
    const chosen = tf.tidy(() => tf.sum(tf.mul(logProbs, oneHot(tokens, logits)), -1));
    const entropy = tf.tidy(() => tf.neg(blockSum(tf.mul(tf.exp(logProbs), logProbs))));
    return [tf.stack([chosen, entropy])];
  },
);

/**
 * The gradient of the logits z: ∂logp/∂z = (1[token] − p) / T and ∂entropy/∂z = −p · (log p + entropy) / T.
 * A kernel may write it over the logits, which nobody needs any more.
 */
export const tokenLogProbsGradient = fusible(
  'TokenLogProbsGrad',
  (
    [dy, logits, tokens, values]: [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    { temperature }: { temperature: number },
  ): [tf.Tensor] => {
    const column = (x: tf.Tensor, row: number) => tf.reshape(tf.slice(x, [row, 0], [1, -1]), [-1, 1]);
    const logProbs = logSoftmax(logits, temperature);
    const probs = tf.exp(logProbs);
    const fromChosen = tf.tidy(() => tf.mul(tf.sub(oneHot(tokens, logits), probs), column(dy, 0)));
    const fromEntropy = tf.tidy(() => tf.mul(tf.mul(probs, tf.add(logProbs, column(values, 1))), column(dy, 1)));
    return [tf.tidy(() => tf.div(tf.sub(fromChosen, fromEntropy), temperature))];
  },
);

const logSoftmax = (logits: tf.Tensor, temperature: number): tf.Tensor =>
  tf.tidy(() => {
    const shifted = tf.tidy(() => {
      const scaled = temperature === 1 ? logits : tf.div(logits, temperature);
      return tf.sub(scaled, tf.max(scaled, -1, true));
    });
    return tf.sub(shifted, tf.expandDims(tf.log(tf.tidy(() => blockSum(tf.exp(shifted)))), -1));
  });

const oneHot = (tokens: tf.Tensor, logits: tf.Tensor): tf.Tensor =>
  tf.oneHot(tokens as tf.Tensor1D, logits.shape[1]!).toFloat();
