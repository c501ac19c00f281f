import type * as tf from '@tensorflow/tfjs';
import { onWebGpu } from '../on_webgpu.ts';
import { appendKernel } from './append.ts';
import { placeBlocks } from './webgpu_kernel.ts';

export const appendOnWebGpu = [
  onWebGpu(appendKernel, ([past, x], { run, output, overwritten }, { length, room }) => {
    const [batch, before, dim] = past.shape;
    const filled = length + x.shape[1];
    const place = (from: tf.TensorInfo, y: tf.TensorInfo, first: number, rows: number) => {
      const [step, stride] = [from.shape[1] * dim, y.shape[1] * dim];
      const [width, count] = [rows * dim, batch * rows * dim];
      run(
        placeBlocks,
        { x: from, y, count, first: first * dim, width, step, stride },
        Math.ceil(count / placeBlocks.threads),
      );
    };
    const fits = filled <= before;
    // All the room at once: a cache that stays where it is keeps what was made to bind it.
    const y = fits ? overwritten(past) : output([batch, Math.max(filled, room), dim]);
    if (!fits) place(past, y, 0, length);
    place(x, y, length, x.shape[1]);
    return [y];
  }),
];
