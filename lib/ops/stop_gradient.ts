import * as tf from '@tensorflow/tfjs';

/** x as a number like any other: what is computed from it has no gradient with respect to what x was computed from. */
export const stopGradient = tf.customGrad((x) => {
  const value = (x as tf.Tensor).clone();
  return { value, gradFunc: (dy: tf.Tensor) => tf.zerosLike(dy) };
}) as <T extends tf.Tensor>(x: T) => T;
