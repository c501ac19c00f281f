import * as tf from '@tensorflow/tfjs';
import { onWebGpu, replaceOnWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { gatherRows } from './move_rows.ts';
import { gatherRows as kernel, sumSegments } from './webgpu_kernel.ts';

export const moveRowsOnWebGpu = [
  onWebGpu(gatherRows, ([x, index], { run, output }) => {
    const [limit, width] = x.shape;
    const [rows] = index.shape;
    const [y, count] = [output([rows, width]), rows * width];
    run(kernel, { x, index, y, count, width, limit }, Math.ceil(count / kernel.threads));
    return [y];
  }),
];

/** `tf.gather` along the first axis: embeddings, and caches whose rows have ended. Rows that there are not are zeros. */
export const gatherOnWebGpu = replaceOnWebGpu(tf.GatherV2, ({ x, indices }, { run, output }, { axis, batchDims }) => {
  if (axis !== 0 || batchDims || x.dtype !== 'float32' || indices.dtype !== 'int32') return undefined;
  const [limit, ...row] = x.shape;
  const y = output([...indices.shape, ...row]);
  const [width, count] = [sizeOf(row), sizeOf(y.shape)];
  run(kernel, { x, index: indices, y, count, width, limit }, Math.ceil(count / kernel.threads));
  return y;
});

/** The gradient of that. The backend's own adds with atomic operations, in another order every time. */
export const sumSegmentsOnWebGpu = replaceOnWebGpu(
  tf.UnsortedSegmentSum,
  ({ x, segmentIds: segments }, { run, output }, { numSegments }) => {
    if (x.dtype !== 'float32' || segments.dtype !== 'int32' || segments.shape.length !== 1) return undefined;
    const [rows, ...row] = x.shape;
    const y = output([numSegments as number, ...row]);
    const width = sizeOf(row);
    run(sumSegments, { x, segments, y, rows, width }, width > 0 ? (numSegments as number) : 0);
    return y;
  },
);
