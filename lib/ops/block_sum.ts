/** A sum of very many values, as exact as float32 lets it be. */
import * as tf from '@tensorflow/tfjs';

/**
 * Sum over the last axis: of blocks of about √n values first, then of the blocks. TensorFlow.js' own sum may add one value
 * after the other (on wasm it does), and of the 151,936 exponentials of a large vocabulary that gets four digits right.
 * @param x - shape (…, n)
 * @returns shape (…)
 */
export function blockSum(x: tf.Tensor): tf.Tensor {
  const [length, rows] = [x.shape.at(-1)!, x.shape.slice(0, -1)];
  const block = Math.max(1, Math.ceil(Math.sqrt(length)));
  const blocks = Math.ceil(length / block);
  const missing = blocks * block - length;
  return tf.tidy(() => {
    const whole = missing === 0 ? x : tf.pad(x, [...rows.map((): [number, number] => [0, 0]), [0, missing]]);
    return tf.sum(tf.sum(tf.reshape(whole, [...rows, blocks, block]), -1), -1);
  });
}
