/** Attention over several stretches of keys, some of them shared by many queries. */
import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

/**
 * A stretch of keys and values that queries attend to.
 * - `k`, `v`: shape (batch, S, D); the M queries are split evenly, in order, over the batch.
 * - `visible`: how many of the S keys, the first ones, a query may look at; all of them if absent.
 */
export type KeySegment = { k: tf.Tensor3D; v: tf.Tensor3D; visible?: Visible | undefined };

/** Query i sees `counts[⌊i / divisor⌋ mod counts.length]` keys. */
export type Visible = { counts: number[]; divisor: number };

/** What attention needs to know besides its tensors. */
type Attributes = { visible: (Visible | undefined)[] };

/** Score added where a query must not look: exp(−1e9) is exactly 0 in float32. */
const HIDDEN = -1e9;

/**
 * Softmax attention over several segments of keys at once: `softmax([q K₁ᵀ | q K₂ᵀ | …] / √D) [V₁ ; V₂ ; …]`
 * (Vaswani et al. 2017, eq. 1). A segment whose batch is smaller than another's is shared by more queries: that is
 * how the completions of a group read their prompt's keys.
 * @param q - queries, shape (M, D); each must see at least one key
 * @returns shape (M, D)
 */
export function attention(q: tf.Tensor2D, segments: KeySegment[]): tf.Tensor2D {
  const attributes = { visible: segments.map(({ visible }) => visible) };
  const op = differentiable((inputs: [tf.Tensor, ...tf.Tensor[]]) => {
    const [value, ...kept] = attentionForward(inputs, attributes);
    return {
      value,
      kept: [value, ...kept, ...inputs],
      gradient: (dy, kept) => attentionGradient([dy, ...kept], attributes),
    };
  });
  return op([q, ...segments.flatMap(({ k, v }) => [k, v])]) as tf.Tensor2D;
}

/** q, K₁, V₁, K₂, V₂, … → the value, and something of each query for the gradient: here the probabilities. */
export const attentionForward = fusible(
  'Attention',
  ([q, ...segments]: [tf.Tensor, ...tf.Tensor[]], { visible }: Attributes): [value: tf.Tensor, probs: tf.Tensor] => {
    const [ks, vs] = keysAndValues(segments);
    const scaled = tf.mul(q, 1 / Math.sqrt(q.shape[1]!));
    const scores = ks.map((k, i) => hide(flat(tf.matMul(batched(scaled, k), k, false, true)), visible[i]));
    const probs = tf.softmax(scores.length === 1 ? scores[0] : (tf.concat(scores, 1) as tf.Tensor2D));
    const value = addAll(split(probs, ks).map((p, i) => flat(tf.matMul(batched(p, vs[i]), vs[i]))));
    return [value, probs];
  },
);

/** dO, O, P, q, K₁, V₁, … → dq, dK₁, dV₁, …: dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q. */
export const attentionGradient = fusible(
  'AttentionGrad',
  (
    [dy, value, probs, q, ...segments]: [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, ...tf.Tensor[]],
    _: Attributes,
  ): [dQ: tf.Tensor, ...dSegments: tf.Tensor[]] => {
    const [ks, vs] = keysAndValues(segments);
    const scale = 1 / Math.sqrt(q.shape[1]!);
    const ps = split(probs as tf.Tensor2D, ks);
    const rowSum = tf.sum(tf.mul(dy, value), 1, true);
    const dScores = ps.map((p, i) =>
      tf.mul(tf.mul(p, scale), tf.sub(flat(tf.matMul(batched(dy, vs[i]), vs[i], false, true)), rowSum)),
    );
    return [
      addAll(dScores.map((dS, i) => flat(tf.matMul(batched(dS, ks[i]), ks[i])))),
      ...ks.flatMap((k, i) => [
        tf.matMul(batched(dScores[i], k), batched(q, k), true, false),
        tf.matMul(batched(ps[i], k), batched(dy, k), true, false),
      ]),
    ];
  },
);

const keysAndValues = (segments: tf.Tensor[]): [ks: tf.Tensor3D[], vs: tf.Tensor3D[]] =>
  [0, 1].map((odd) => segments.filter((_, i) => i % 2 === odd)) as [tf.Tensor3D[], tf.Tensor3D[]];

/** The rows of x, split over the batch of a segment. */
const batched = (x: tf.Tensor, { shape }: tf.Tensor): tf.Tensor3D => tf.reshape(x, [shape[0], -1, x.shape[1]!]);

const flat = (x: tf.Tensor): tf.Tensor2D => tf.reshape(x, [-1, x.shape[2]!]);

/** The columns that belong to the keys of each segment. */
function split(x: tf.Tensor2D, ks: tf.Tensor3D[]): tf.Tensor2D[] {
  if (ks.length === 1) return [x];
  let begin = 0;
  return ks.map(({ shape: [, size] }) => {
    begin += size;
    return tf.slice(x, [0, begin - size], [-1, size]);
  });
}

/** Scores of shape (M, S), with those of keys that a query does not see out of reach. */
function hide(scores: tf.Tensor2D, visible: Visible | undefined): tf.Tensor2D {
  if (!visible) return scores;
  const { counts, divisor } = visible;
  const size = scores.shape[1];
  if (counts.every((count) => count === size)) return scores;
  const bias = new Float32Array(counts.length * size);
  counts.forEach((count, i) => void bias.fill(HIDDEN, i * size + count, (i + 1) * size));
  const grouped = tf.reshape(scores, [-1, counts.length, divisor, size]);
  return tf.reshape(tf.add(grouped, tf.tensor4d(bias, [1, counts.length, 1, size])), scores.shape);
}

const addAll = (xs: tf.Tensor[]): tf.Tensor => xs.reduce((sum, x) => tf.add(sum, x));
