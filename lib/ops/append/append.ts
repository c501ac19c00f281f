/** A key/value cache that grows. */
import * as tf from '@tensorflow/tfjs';
import { kernelOf } from '../fusible.ts';

/**
 * Puts new rows behind those that each matrix of a batch holds so far: `concat([past[:, :length], x], 1)`.
 * @param past - shape (batch, S, D), of which the first `length` of S rows are filled
 * @param x - shape (batch, T, D)
 * @param options - `room`: rows that there will be in the end. With it, the past is not used again, and no gradient recorded:
 *   where the backend has a kernel for it, the rows are put into the past itself if they fit, and else into a tensor that
 *   has room for as many again
 * @returns shape (batch, ≥ length + T, D): what lies behind the last row means nothing
 */
export function append(
  past: tf.Tensor3D,
  x: tf.Tensor3D,
  { length, room }: { length: number; room?: number | undefined },
): tf.Tensor3D {
  const kernel = room === undefined ? undefined : appendKernel.find();
  if (kernel) return kernel([past, x], { length, room: room! })[0];
  return tf.concat([past.shape[1] === length ? past : tf.slice(past, [0, 0, 0], [-1, length, -1]), x], 1);
}

/** past, x → past with x behind its first `length` rows */
export const appendKernel = kernelOf<[tf.Tensor3D, tf.Tensor3D], [{ length: number; room: number }], [tf.Tensor3D]>(
  'Append',
);
