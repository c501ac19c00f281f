import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

/**
 * RMSNorm: `y = w · x / √(mean(x²) + ε)` over the last axis (Zhang & Sennrich 2019, eq. 4).
 * @param x - shape (N, H)
 * @param weight - shape (H)
 */
export function rmsNorm(x: tf.Tensor2D, weight: tf.Tensor, epsilon: number): tf.Tensor2D {
  const op = differentiable(([x, weight]: [tf.Tensor2D, tf.Tensor]) => {
    const [value, inverseRms] = rmsNormForward([x, weight], { epsilon });
    return { value, kept: [x, weight, inverseRms], gradient: (dy, kept) => rmsNormGradient([dy, ...kept]) };
  });
  return op([x, weight]);
}

/** y, and `1 / √(mean(x²) + ε)` of each row for the gradient. */
export const rmsNormForward = fusible(
  'RmsNorm',
  (
    [x, weight]: [tf.Tensor2D, tf.Tensor],
    { epsilon }: { epsilon: number },
  ): [y: tf.Tensor2D, inverseRms: tf.Tensor] => {
    const inverseRms = tf.rsqrt(tf.mean(tf.square(x), -1, true).add(epsilon));
    return [tf.mul(tf.mul(x, inverseRms), weight), inverseRms];
  },
);

/** dy, x, w, and what the forward pass has kept → dx, dw. */
export const rmsNormGradient = fusible(
  'RmsNormGrad',
  ([dy, x, weight, inverseRms]: [tf.Tensor2D, tf.Tensor2D, tf.Tensor, tf.Tensor]): [
    dx: tf.Tensor,
    dWeight: tf.Tensor,
  ] => {
    const normed = tf.mul(x, inverseRms);
    const dNormed = tf.mul(dy, weight);
    const projection = tf.mean(tf.mul(dNormed, normed), -1, true);
    return [tf.mul(inverseRms, tf.sub(dNormed, tf.mul(normed, projection))), tf.sum(tf.mul(dy, normed), 0)];
  },
);
