import * as tf from '@tensorflow/tfjs';
import { fusible } from '../fusible.ts';

type Factors = Record<
  'gradientScale' | 'beta1' | 'beta2' | 'epsilon' | 'decay' | 'stepSize' | 'rootOfCorrection',
  number
>;

/** Parameter, gradient and moments → the next parameter and moments. A kernel may write over those that it replaces. */
export const adamWUpdate = fusible(
  'AdamW',
  (
    [param, unscaled, oldM, oldV]: [tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor],
    factors: Factors,
  ): [param: tf.Tensor, m: tf.Tensor, v: tf.Tensor] => {
    const { gradientScale, beta1, beta2, epsilon, decay, stepSize, rootOfCorrection } = factors;
    const gradient = tf.mul(unscaled, gradientScale);
    const m = tf.add(tf.mul(oldM, beta1), tf.mul(gradient, 1 - beta1));
    const v = tf.add(tf.mul(oldV, beta2), tf.mul(tf.square(gradient), 1 - beta2));
    const decayed = decay === 1 ? param : tf.mul(param, decay);
    const denominator = tf.add(tf.div(tf.sqrt(v), rootOfCorrection), epsilon);
    return [tf.sub(decayed, tf.mul(tf.div(m, denominator), stepSize)), m, v];
  },
);
