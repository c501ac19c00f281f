import { onWebGpu } from '../on_webgpu.ts';
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
