import { onWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { sumOfSquaresForward } from './sum_of_squares.ts';
import { sumOfSquares, sumUp } from './webgpu_kernel.ts';

/** Numbers that a workgroup takes at least, and workgroups at most. */
const [SHARE, MOST_GROUPS] = [2 ** 14, 1024];

export const sumOfSquaresOnWebGpu = [
  onWebGpu(sumOfSquaresForward, ([x], { run, output, scratch }) => {
    const count = sizeOf(x.shape);
    const groups = Math.max(1, Math.min(MOST_GROUPS, Math.ceil(count / SHARE)));
    const y = output([]);
    if (groups === 1) {
      run(sumOfSquares, { x, sums: y, count }, 1);
    } else {
      const sums = scratch([groups]);
      run(sumOfSquares, { x, sums, count }, groups);
      run(sumUp, { x: sums, sums: y, count: groups }, 1);
    }
    return [y];
  }),
];
