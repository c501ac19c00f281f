import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

/**
 * SwiGLU gate: `silu(gate) · up`, `silu(g) = g · σ(g)` (Shazeer 2020).
 * @param gate - shape (N, F)
 * @param up - shape (N, F)
 */
export function swiGlu(gate: tf.Tensor2D, up: tf.Tensor2D): tf.Tensor2D {
  const op = differentiable((inputs: [tf.Tensor2D, tf.Tensor2D]) => ({
    value: swiGluForward(inputs)[0],
    kept: inputs,
    gradient: (dy, kept) => swiGluGradient([dy, ...kept]),
  }));
  return op([gate, up]);
}

/** gate, up → y */
export const swiGluForward = fusible('SwiGlu', ([gate, up]: [tf.Tensor2D, tf.Tensor2D]): [tf.Tensor2D] => [
  tf.mul(tf.mul(gate, tf.sigmoid(gate)), up),
]);

/** dy, gate, up → dgate, dup */
export const swiGluGradient = fusible(
  'SwiGluGrad',
  ([dy, gate, up]: [tf.Tensor2D, tf.Tensor2D, tf.Tensor2D]): [tf.Tensor2D, tf.Tensor2D] => {
    const sigma = tf.sigmoid(gate);
    const silu = tf.mul(gate, sigma);
    // silu' = σ + silu · (1 − σ)
    return [tf.mul(tf.mul(dy, up), tf.add(sigma, tf.sub(silu, tf.mul(silu, sigma)))), tf.mul(dy, silu)];
  },
);
