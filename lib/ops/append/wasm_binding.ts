import type * as tf from '@tensorflow/tfjs';
import { onWasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { appendKernel } from './append.ts';

export const appendOnWasm = [
  onWasm(appendKernel, ([past, x], { run, output, overwritten }, { length, room }) => {
    const [batch, before, width] = past.shape;
    const filled = length + x.shape[1];
    const place = (from: tf.TensorInfo, y: tf.TensorInfo, first: number, rows: number) => {
      const [step, stride] = [from.shape[1] * width, y.shape[1] * width];
      const args = { x: from, y, first: first * width, width: rows * width, step, stride };
      run.placeBlocks(args, pieces(batch, rows * width));
    };
    const fits = filled <= before;
    // Twice the room each time: what is copied in all stays less than what is written.
    const y = fits ? overwritten(past) : output([batch, Math.max(filled, Math.min(2 * filled, room)), width]);
    if (!fits) place(past, y, 0, length);
    place(x, y, length, x.shape[1]);
    return [y];
  }),
];
