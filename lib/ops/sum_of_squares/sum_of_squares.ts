import * as tf from '@tensorflow/tfjs';
import { blockSum } from '../block_sum.ts';
import { fusible } from '../fusible.ts';

/**
 * `Σ x²` over all numbers of all these tensors; its root is the norm of what they are together. Added up in parts: one sum over
 * all values of a large matrix would lose digits.
 * @param tensors - each of one dimension at least
 * @returns shape ()
 */
export const sumOfSquares = (tensors: tf.Tensor[]): tf.Scalar => sumOfSquaresForward(tensors)[0];

export const sumOfSquaresForward = fusible('SumOfSquares', (tensors: tf.Tensor[]): [tf.Scalar] => {
  const sums = tensors.map((x) => tf.tidy(() => blockSum(tf.reshape(tf.sum(tf.square(x), -1, true), [-1]))));
  return [tf.sum(tf.stack(sums)) as tf.Scalar];
});
