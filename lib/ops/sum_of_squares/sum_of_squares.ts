import * as tf from '@tensorflow/tfjs';
import { blockSum } from '../block_sum.ts';
import { fusible } from '../fusible.ts';

/**
 * `Σ x²` over all numbers of a tensor; its root is the norm. Added up in parts: one sum over all values of a large matrix would
 * lose digits.
 * @param x - of one dimension at least
 * @returns shape ()
 */
export const sumOfSquares = (x: tf.Tensor): tf.Scalar => sumOfSquaresForward([x])[0];

export const sumOfSquaresForward = fusible('SumOfSquares', ([x]: [tf.Tensor]): [tf.Scalar] => [
  blockSum(tf.reshape(tf.sum(tf.square(x), -1, true), [-1])) as tf.Scalar,
]);
