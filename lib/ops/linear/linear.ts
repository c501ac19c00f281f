import * as tf from '@tensorflow/tfjs';

/**
 * `x Wᵀ`: a linear layer with its weight stored as Hugging Face stores it.
 * @param x - shape (N, in)
 * @param weight - shape (out, in)
 * @returns shape (N, out)
 */
export const linear = (x: tf.Tensor2D, weight: tf.Tensor): tf.Tensor2D =>
  tf.matMul(x, weight as tf.Tensor2D, false, true);
