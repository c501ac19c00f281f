import * as tf from '@tensorflow/tfjs';
import { differentiable, fusible } from '../fusible.ts';

/** Source rows for {@link moveRows}, and whether any of them is a hole (one past the last row: zeros). */
export type RowIndex = { rows: tf.Tensor1D; holes: boolean };

/**
 * Moves rows: `y[i] = x[index[i]]`, or zeros where `index[i]` is the number of rows of x.
 * Its gradient moves them back, which is a gather too, since every row of x appears at most once in y.
 * @param x - shape (R, D)
 * @param index - where each row of y comes from, shape (S), int32
 * @param inverse - where each row of x went to, shape (R), int32; S for a row that went nowhere
 * @returns shape (S, D)
 */
export function moveRows(x: tf.Tensor2D, index: RowIndex, inverse: RowIndex): tf.Tensor2D {
  const op = differentiable(([x]: [tf.Tensor2D]) => ({
    value: gatherRows([x, index.rows], index)[0] as tf.Tensor2D,
    kept: [inverse.rows],
    gradient: (dy, kept) => gatherRows([dy, ...kept], inverse),
  }));
  return op([x]);
}

/** x, index → y */
export const gatherRows = fusible(
  'MoveRows',
  ([x, rows]: [tf.Tensor2D, tf.Tensor], { holes }: { holes: boolean }): [tf.Tensor] => [
    tf.gather(holes ? tf.concat([x, tf.zeros([1, x.shape[1]])]) : x, rows),
  ],
);
