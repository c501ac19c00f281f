import type * as tf from '@tensorflow/tfjs';
import { onWebGpu, type WebGpu } from '../on_webgpu.ts';
import { appendKernel } from './append.ts';
import { placeBlocks } from './webgpu_kernel.ts';

/** The least room that is made: a cache that stays where it is keeps the bind groups that were made for it. */
const LEAST_ROOM = 32;

export const appendOnWebGpu = [
  onWebGpu(appendKernel, ([past, x], webgpu, { length, room }) => {
    const y = withRoom(past, webgpu, { length, filled: length + x.shape[1], room });
    place(x, y, webgpu, { at: length, rows: x.shape[1] });
    return [y];
  }),
];

/**
 * A cache that has room for more rows: itself if it fits, or else a copy.
 * @param options - rows that are filled, that are to be filled next, and that there will be in the end
 */
export function withRoom(
  past: tf.TensorInfo,
  webgpu: WebGpu,
  { length, filled, room }: Record<'length' | 'filled' | 'room', number>,
): tf.TensorInfo {
  const [batch, before, width] = past.shape;
  if (filled <= before) return webgpu.overwritten(past);
  // Twice the room each time: what is copied in all stays less than what is written.
  const enough = Math.max(filled, Math.min(Math.max(2 * filled, LEAST_ROOM), room));
  const y = webgpu.output([batch, enough, width]);
  place(past, y, webgpu, { at: 0, rows: length });
  return y;
}

/** Copies the first `rows` rows of each matrix of x to those of y from `at` on. */
function place(x: tf.TensorInfo, y: tf.TensorInfo, { run }: WebGpu, { at, rows }: Record<'at' | 'rows', number>): void {
  const [batch, height, dim] = x.shape;
  const [width, count] = [rows * dim, batch * rows * dim];
  run(
    placeBlocks,
    { x, y, count, first: at * dim, width, step: height * dim, stride: y.shape[1] * dim },
    Math.ceil(count / placeBlocks.threads),
  );
}
