/**
 * The operations where the time goes, each defined by its formula in plain TensorFlow.js. Where automatic
 * differentiation would be slow, or its kernels are missing on some backend, the gradient is written out too
 * (`tf.customGrad`) and tested against finite differences. A gradient may use only tensors that it saved: others are
 * gone by then.
 */
import * as tf from '@tensorflow/tfjs';

/**
 * `x Wᵀ`: a linear layer with its weight stored as Hugging Face stores it.
 * @param x - shape (N, in)
 * @param weight - shape (out, in)
 * @returns shape (N, out)
 */
export const linear = (x: tf.Tensor2D, weight: tf.Tensor): tf.Tensor2D =>
  tf.matMul(x, weight as tf.Tensor2D, false, true);

/**
 * RMSNorm: `y = w · x / √(mean(x²) + ε)` over the last axis (Zhang & Sennrich 2019, eq. 4).
 * @param x - shape (N, H)
 * @param weight - shape (H)
 */
export function rmsNorm(x: tf.Tensor2D, weight: tf.Tensor, epsilon: number): tf.Tensor2D {
  const op = tf.customGrad((...args) => {
    const [x, weight, save] = args as unknown as [tf.Tensor2D, tf.Tensor1D, tf.GradSaveFunc];
    const inverseRms = tf.rsqrt(tf.mean(tf.square(x), -1, true).add(epsilon));
    const normed = tf.mul(x, inverseRms);
    save([weight, inverseRms, normed]);
    const gradFunc = (dy: tf.Tensor, [weight, inverseRms, normed]: tf.Tensor[]) => {
      const dNormed = tf.mul(dy, weight);
      const projection = tf.mean(tf.mul(dNormed, normed), -1, true);
      return [tf.mul(inverseRms, tf.sub(dNormed, tf.mul(normed, projection))), tf.sum(tf.mul(dy, normed), 0)];
    };
    return { value: tf.mul(normed, weight), gradFunc };
  });
  return op(x, weight) as tf.Tensor2D;
}

/**
 * Rotary position embedding (Su et al. 2021, eq. 34), in Llama's layout: dimension i is paired with i + D/2, and
 * the pair is turned by the angle position · inverseFrequency[i].
 * @param x - queries or keys, shape (N, heads, D)
 * @param cos - shape (N, 1, D/2)
 * @param sin - shape (N, 1, D/2)
 */
export function rotaryEmbedding(x: tf.Tensor3D, cos: tf.Tensor3D, sin: tf.Tensor3D): tf.Tensor3D {
  const half = x.shape[2] / 2;
  const rotate = (x: tf.Tensor, { cos, sin, sign }: { cos: tf.Tensor; sin: tf.Tensor; sign: 1 | -1 }): tf.Tensor => {
    const first = tf.slice(x, [0, 0, 0], [-1, -1, half]);
    const second = tf.slice(x, [0, 0, half], [-1, -1, half]);
    const [a, b] = [tf.mul(first, cos), tf.mul(second, cos)];
    const [c, d] = [tf.mul(second, sin), tf.mul(first, sin)];
    return sign === 1 ? tf.concat([tf.sub(a, c), tf.add(b, d)], -1) : tf.concat([tf.add(a, c), tf.sub(b, d)], -1);
  };
  // The transpose of a rotation is the rotation back.
  const op = tf.customGrad((...args) => {
    const [x, save] = args as unknown as [tf.Tensor, tf.GradSaveFunc];
    save([cos, sin]);
    const gradFunc = (dy: tf.Tensor, [cos, sin]: tf.Tensor[]) => rotate(dy, { cos, sin, sign: -1 });
    return { value: rotate(x, { cos, sin, sign: 1 }), gradFunc };
  });
  return op(x) as tf.Tensor3D;
}

/**
 * SwiGLU gate: `silu(gate) · up`, `silu(g) = g · σ(g)` (Shazeer 2020).
 * @param gate - shape (N, F)
 * @param up - shape (N, F)
 */
export function swiGlu(gate: tf.Tensor2D, up: tf.Tensor2D): tf.Tensor2D {
  const op = tf.customGrad((...args) => {
    const [gate, up, save] = args as unknown as [tf.Tensor, tf.Tensor, tf.GradSaveFunc];
    const sigma = tf.sigmoid(gate);
    const silu = tf.mul(gate, sigma);
    save([up, sigma, silu]);
    // silu' = σ + silu · (1 − σ)
    const gradFunc = (dy: tf.Tensor, [up, sigma, silu]: tf.Tensor[]) => [
      tf.mul(tf.mul(dy, up), tf.add(sigma, tf.sub(silu, tf.mul(silu, sigma)))),
      tf.mul(dy, silu),
    ];
    return { value: tf.mul(silu, up), gradFunc };
  });
  return op(gate, up) as tf.Tensor2D;
}

/**
 * Moves rows: `y[i] = x[index[i]]`, or zeros where `index[i]` is the number of rows of x.
 * Its gradient moves them back, which is a gather too, since every row of x appears at most once in y.
 * @param x - shape (R, D)
 * @param index - where each row of y comes from, shape (S), int32
 * @param inverse - where each row of x went to, shape (R), int32; S for a row that went nowhere
 * @returns shape (S, D)
 */
export function moveRows(x: tf.Tensor2D, index: RowIndex, inverse: RowIndex): tf.Tensor2D {
  const gather = (x: tf.Tensor, { rows, holes }: RowIndex): tf.Tensor =>
    tf.gather(holes ? tf.concat([x, tf.zeros([1, x.shape[1] as number])]) : x, rows);
  const op = tf.customGrad((...args) => {
    const [x, save] = args as unknown as [tf.Tensor, tf.GradSaveFunc];
    save([inverse.rows]);
    const gradFunc = (dy: tf.Tensor, [rows]: tf.Tensor[]) =>
      gather(dy, { rows: rows as tf.Tensor1D, holes: inverse.holes });
    return { value: gather(x, index), gradFunc };
  });
  return op(x) as tf.Tensor2D;
}

/** Source rows for {@link moveRows}, and whether any of them is a hole (one past the last row: zeros). */
export type RowIndex = { rows: tf.Tensor1D; holes: boolean };

/**
 * A stretch of keys and values that queries attend to.
 * - `k`, `v`: shape (batch, S, D); the M queries are split evenly, in order, over the batch.
 * - `bias`: added to the scores, 0 where a query may look, −1e9 where not. Shape (a, 1, S): a row for each of a equal
 *   parts of the queries; or (1, b, S): its b rows repeat every b queries.
 */
export type KeySegment = { k: tf.Tensor3D; v: tf.Tensor3D; bias?: tf.Tensor3D };

/**
 * Softmax attention over several segments of keys at once: `softmax([q K₁ᵀ | q K₂ᵀ | …] / √D) [V₁ ; V₂ ; …]`
 * (Vaswani et al. 2017, eq. 1). A segment whose batch is smaller than another's is shared by more queries: that is
 * how the completions of a group read their prompt's keys in one matrix product.
 * @param q - queries, shape (M, D)
 * @returns shape (M, D)
 */
export function attention(q: tf.Tensor2D, segments: KeySegment[]): tf.Tensor2D {
  const [queries, dim] = q.shape;
  const scale = 1 / Math.sqrt(dim);
  const batched = (x: tf.Tensor, k: tf.Tensor) => tf.reshape(x, [k.shape[0], -1, x.shape[1] as number]) as tf.Tensor3D;
  const flat = (x: tf.Tensor) => tf.reshape(x, [queries, -1]) as tf.Tensor2D;
  const sizes = segments.map(({ k }) => k.shape[1]);
  const split = (x: tf.Tensor2D) => {
    if (sizes.length === 1) return [x];
    const begin = (i: number) => sizes.slice(0, i).reduce((sum, size) => sum + size, 0);
    return sizes.map((size, i) => tf.slice(x, [0, begin(i)], [-1, size]));
  };
  const biased = (scores: tf.Tensor, bias?: tf.Tensor3D) => {
    if (!bias) return scores;
    const [a, b, size] = bias.shape;
    return tf.add(tf.reshape(scores, a === 1 ? [-1, b, size] : [a, -1, size]), bias);
  };
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    const [q, ...rest] = args as tf.Tensor[];
    const [ks, vs] = [rest.slice(0, segments.length), rest.slice(segments.length)];
    const scaled = tf.mul(q, scale);
    const scores = ks.map((k, i) => flat(biased(tf.matMul(batched(scaled, k), k, false, true), segments[i].bias)));
    const probs = tf.softmax(scores.length === 1 ? scores[0] : (tf.concat(scores, 1) as tf.Tensor2D));
    const value = addAll(split(probs).map((p, i) => flat(tf.matMul(batched(p, vs[i]), vs[i]))));
    save([scaled, ...ks, ...vs, probs, value]);
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) => {
      const scaled = saved[0];
      const ks = saved.slice(1, 1 + segments.length);
      const vs = saved.slice(1 + segments.length, 1 + 2 * segments.length);
      const [probs, value] = saved.slice(-2);
      // With P the probabilities: dV = Pᵀ dO, dP = dO Vᵀ, dS = P ∘ (dP − rowsum(dO ∘ O)), dQ = dS K, dK = dSᵀ Q.
      const ps = split(probs as tf.Tensor2D);
      const rowSum = tf.sum(tf.mul(dy, value), 1, true);
      const dScores = ps.map((p, i) =>
        tf.mul(p, tf.sub(flat(tf.matMul(batched(dy, vs[i]), vs[i] as tf.Tensor3D, false, true)), rowSum)),
      );
      return [
        tf.mul(addAll(dScores.map((dS, i) => flat(tf.matMul(batched(dS, ks[i]), ks[i])))), scale),
        ...dScores.map((dS, i) => tf.matMul(batched(dS, ks[i]), batched(scaled, ks[i]), true, false)),
        ...ps.map((p, i) => tf.matMul(batched(p, vs[i]), batched(dy, vs[i]), true, false)),
      ];
    };
    return { value, gradFunc };
  });
  return op(q, ...segments.map(({ k }) => k), ...segments.map(({ v }) => v)) as tf.Tensor2D;
}

/**
 * f(inputs), of which nothing is kept but the inputs: its gradient runs f a second time (Chen et al. 2016, "Training Deep
 * Nets with Sublinear Memory Cost").
 * @param f - uses no tensor but those that it is given, those that it creates, and those that outlive the gradient
 * @param inputs - of type float32
 */
export function recomputed(f: (inputs: tf.Tensor[]) => tf.Tensor[], inputs: tf.Tensor[]): tf.Tensor[] {
  let shapes: number[][] = [];
  // A custom gradient can have one output only.
  const packed = (inputs: tf.Tensor[]): tf.Tensor1D => {
    const outputs = f(inputs);
    shapes = outputs.map(({ shape }) => shape);
    return tf.concat1d(outputs.map((output) => tf.reshape(output, [-1]) as tf.Tensor1D));
  };
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    save(args as tf.Tensor[]);
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) => {
      // The engine has one tape at a time: the one that is being read is put aside.
      const { state } = tf.engine();
      const tape = state.activeTape;
      try {
        const { grads } = tf.engine().gradients(() => packed(saved), saved, dy as never, true);
        return grads.map((grad, i) => grad ?? tf.zerosLike(saved[i]));
      } finally {
        state.activeTape = tape;
      }
    };
    return { value: packed(args as tf.Tensor[]), gradFunc };
  });
  const all = op(...inputs) as tf.Tensor1D;
  let begin = 0;
  return shapes.map((shape) => {
    const size = tf.util.sizeFromShape(shape);
    begin += size;
    return tf.reshape(tf.slice1d(all, begin - size, size), shape);
  });
}

const addAll = (xs: tf.Tensor[]): tf.Tensor => xs.reduce((sum, x) => tf.add(sum, x));

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
  const size = Math.max(1, Math.floor(maxLogits / vocabulary));
  const chunks = Array.from({ length: Math.ceil(count / size) }, (_, i) => {
    const begin = i * size;
    return { begin, length: Math.min(size, count - begin) };
  });
  const oneHot = ({ begin, length }: { begin: number; length: number }) =>
    tf.oneHot(tf.tensor1d(tokens.slice(begin, begin + length), 'int32'), vocabulary).toFloat();
  // Each step in a tidy of its own: what is as large as the logits is freed as soon as it has been used.
  const logSoftmax = (hidden: tf.Tensor2D, head: tf.Tensor) =>
    tf.tidy(() => {
      const shifted = tf.tidy(() => {
        const logits = linear(hidden, head);
        const scaled = temperature === 1 ? logits : tf.div(logits, temperature);
        return tf.sub(scaled, tf.max(scaled, -1, true));
      });
      return tf.sub(shifted, tf.log(tf.tidy(() => tf.sum(tf.exp(shifted), -1, true))));
    });
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    const hidden = args[0] as tf.Tensor2D;
    const values = chunks.map((chunk) =>
      tf.tidy(() => {
        const logProbs = logSoftmax(tf.slice(hidden, [chunk.begin, 0], [chunk.length, width]), head);
        const chosen = tf.tidy(() => tf.sum(tf.mul(logProbs, oneHot(chunk)), -1));
        const entropy = tf.tidy(() => tf.neg(tf.sum(tf.mul(tf.exp(logProbs), logProbs), -1)));
        return tf.stack([chosen, entropy]);
      }),
    );
    const value = values.length === 1 ? values[0] : tf.concat(values, 1);
    save([hidden, head, value]);
    const gradFunc = (dy: tf.Tensor, [hidden, head, value]: tf.Tensor[]) => {
      let dHead: tf.Tensor | undefined;
      const dHidden = chunks.map((chunk) => {
        const part = tf.slice(hidden as tf.Tensor2D, [chunk.begin, 0], [chunk.length, width]);
        const [dPart, sum] = tf.tidy(() => {
          const column = (x: tf.Tensor, row: number) =>
            tf.reshape(tf.slice(x as tf.Tensor2D, [row, chunk.begin], [1, chunk.length]), [-1, 1]);
          const dLogits = tf.tidy(() => {
            const logProbs = logSoftmax(part, head);
            const probs = tf.exp(logProbs);
            // ∂logp/∂z = (1[token] − p) / T and ∂entropy/∂z = −p · (log p + entropy) / T
            const fromChosen = tf.tidy(() => tf.mul(tf.sub(oneHot(chunk), probs), column(dy, 0)));
            const fromEntropy = tf.tidy(() => tf.mul(tf.mul(probs, tf.add(logProbs, column(value, 1))), column(dy, 1)));
            return tf.tidy(() => tf.div(tf.sub(fromChosen, fromEntropy), temperature));
          });
          const dPart = tf.matMul(dLogits, head as tf.Tensor2D);
          if (frozenHead) return [dPart];
          const dW = tf.matMul(dLogits, part, true, false);
          return [dPart, dHead ? tf.add(dHead, dW) : dW];
        });
        dHead?.dispose(); // as large as the head: one at a time
        dHead = sum;
        return dPart;
      });
      const all = dHidden.length === 1 ? dHidden[0] : tf.concat(dHidden);
      return dHead ? [all, dHead] : [all];
    };
    return { value, gradFunc };
  });
  return op(...(frozenHead ? [hidden] : [hidden, head])) as tf.Tensor2D;
}
