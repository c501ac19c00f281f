import * as tf from '@tensorflow/tfjs';
import { onWebGpu, replaceOnWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { gatherRows } from './move_rows.ts';
import { gatherRows as kernel } from './webgpu_kernel.ts';

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
