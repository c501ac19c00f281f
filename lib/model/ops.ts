/**
 * The operations where the time goes, each defined by its formula in plain TensorFlow.js. Where automatic
 * differentiation would be slow, or its kernels are missing on some backend, the gradient is written out too
 * and tested against finite differences. A backend may have a faster kernel for a definition ({@link fusible}).
 */
import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from './fusible.ts';

export { attention, type KeySegment } from './attention.ts';
export { tokenLogProbs } from './token_log_probs.ts';

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
  const op = differentiable(([x, weight]) => {
    const [value, inverseRms] = rmsNormForward([x, weight], { epsilon });
    return { value, kept: [x, weight, inverseRms], gradient: (dy, kept) => rmsNormGradient([dy, ...kept], {}) };
  });
  return op([x, weight]) as tf.Tensor2D;
}

const rmsNormForward = fusible<{ epsilon: number }>('RmsNorm', ([x, weight], { epsilon }) => {
  const inverseRms = tf.rsqrt(tf.mean(tf.square(x), -1, true).add(epsilon));
  return [tf.mul(tf.mul(x, inverseRms), weight), inverseRms];
});

const rmsNormGradient = fusible('RmsNormGrad', ([dy, x, weight, inverseRms]) => {
  const normed = tf.mul(x, inverseRms);
  const dNormed = tf.mul(dy, weight);
  const projection = tf.mean(tf.mul(dNormed, normed), -1, true);
  return [tf.mul(inverseRms, tf.sub(dNormed, tf.mul(normed, projection))), tf.sum(tf.mul(dy, normed), 0)];
});

/**
 * Rotary position embedding (Su et al. 2021, eq. 34), in Llama's layout: dimension i is paired with i + D/2, and
 * the pair is turned by the angle position · inverseFrequency[i].
 * @param x - queries or keys, shape (N, heads, D)
 * @param cos - shape (N, 1, D/2)
 * @param sin - shape (N, 1, D/2)
 */
export function rotaryEmbedding(x: tf.Tensor3D, cos: tf.Tensor3D, sin: tf.Tensor3D): tf.Tensor3D {
  const op = differentiable(([x]) => ({
    value: rotate([x, cos, sin], { sign: 1 })[0],
    kept: [cos, sin],
    // The transpose of a rotation is the rotation back.
    gradient: (dy, kept) => rotate([dy, ...kept], { sign: -1 }),
  }));
  return op([x]) as tf.Tensor3D;
}

const rotate = fusible<{ sign: 1 | -1 }>('RotaryEmbedding', ([x, cos, sin], { sign }) => {
  const half = x.shape[2]! / 2;
  const first = tf.slice(x, [0, 0, 0], [-1, -1, half]);
  const second = tf.slice(x, [0, 0, half], [-1, -1, half]);
  const [a, b] = [tf.mul(first, cos), tf.mul(second, cos)];
  const [c, d] = [tf.mul(second, sin), tf.mul(first, sin)];
  return [sign === 1 ? tf.concat([tf.sub(a, c), tf.add(b, d)], -1) : tf.concat([tf.add(a, c), tf.sub(b, d)], -1)];
});

/**
 * SwiGLU gate: `silu(gate) · up`, `silu(g) = g · σ(g)` (Shazeer 2020).
 * @param gate - shape (N, F)
 * @param up - shape (N, F)
 */
export function swiGlu(gate: tf.Tensor2D, up: tf.Tensor2D): tf.Tensor2D {
  const op = differentiable((inputs) => ({
    value: swiGluForward(inputs, {})[0],
    kept: inputs,
    gradient: (dy, kept) => swiGluGradient([dy, ...kept], {}),
  }));
  return op([gate, up]) as tf.Tensor2D;
}

const swiGluForward = fusible('SwiGlu', ([gate, up]) => [tf.mul(tf.mul(gate, tf.sigmoid(gate)), up)]);

const swiGluGradient = fusible('SwiGluGrad', ([dy, gate, up]) => {
  const sigma = tf.sigmoid(gate);
  const silu = tf.mul(gate, sigma);
  // silu' = σ + silu · (1 − σ)
  return [tf.mul(tf.mul(dy, up), tf.add(sigma, tf.sub(silu, tf.mul(silu, sigma)))), tf.mul(dy, silu)];
});

/**
 * Moves rows: `y[i] = x[index[i]]`, or zeros where `index[i]` is the number of rows of x.
 * Its gradient moves them back, which is a gather too, since every row of x appears at most once in y.
 * @param x - shape (R, D)
 * @param index - where each row of y comes from, shape (S), int32
 * @param inverse - where each row of x went to, shape (R), int32; S for a row that went nowhere
 * @returns shape (S, D)
 */
export function moveRows(x: tf.Tensor2D, index: RowIndex, inverse: RowIndex): tf.Tensor2D {
  const op = differentiable(([x]) => ({
    value: gatherRows([x, index.rows], index)[0],
    kept: [inverse.rows],
    gradient: (dy, kept) => gatherRows([dy, ...kept], inverse),
  }));
  return op([x]) as tf.Tensor2D;
}

const gatherRows = fusible<{ holes: boolean }>('MoveRows', ([x, rows], { holes }) => [
  tf.gather(holes ? tf.concat([x, tf.zeros([1, x.shape[1]!])]) : x, rows),
]);

/** Source rows for {@link moveRows}, and whether any of them is a hole (one past the last row: zeros). */
export type RowIndex = { rows: tf.Tensor1D; holes: boolean };

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
