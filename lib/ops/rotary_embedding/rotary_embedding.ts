import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

/**
 * Rotary position embedding (Su et al. 2021, eq. 34), in Llama's layout: dimension i is paired with i + D/2, and
 * the pair is turned by the angle position · inverseFrequency[i].
 * @param x - queries or keys, shape (N, heads, D)
 * @param cos - shape (N, 1, D/2)
 * @param sin - shape (N, 1, D/2)
 */
export function rotaryEmbedding(x: tf.Tensor3D, cos: tf.Tensor3D, sin: tf.Tensor3D): tf.Tensor3D {
  const op = differentiable(([x]: [tf.Tensor3D]) => ({
    value: rotate([x, cos, sin], { sign: 1 })[0] as tf.Tensor3D,
    kept: [cos, sin],
    // The transpose of a rotation is the rotation back.
    gradient: (dy, kept) => rotate([dy, ...kept], { sign: -1 }),
  }));
  return op([x]);
}

/** x, cos, sin → x turned by the angles; turned back if `sign` is −1. */
export const rotate = fusible(
  'RotaryEmbedding',
  ([x, cos, sin]: [tf.Tensor3D, tf.Tensor3D, tf.Tensor3D], { sign }: { sign: 1 | -1 }): [tf.Tensor] => {
    const half = x.shape[2] / 2;
    const first = tf.slice(x, [0, 0, 0], [-1, -1, half]);
    const second = tf.slice(x, [0, 0, half], [-1, -1, half]);
    const [a, b] = [tf.mul(first, cos), tf.mul(second, cos)];
    const [c, d] = [tf.mul(second, sin), tf.mul(first, sin)];
    return [sign === 1 ? tf.concat([tf.sub(a, c), tf.add(b, d)], -1) : tf.concat([tf.add(a, c), tf.sub(b, d)], -1)];
  },
);
