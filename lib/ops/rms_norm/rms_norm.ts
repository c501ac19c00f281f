import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

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
