import { onWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { sumOfSquaresForward } from './sum_of_squares.ts';
import { AT_ONCE, argumentsOf, sumOfSquares, sumUp } from './webgpu_kernel.ts';

/** Numbers that a workgroup takes at least, and workgroups of a tensor at most. */
const [SHARE, MOST_GROUPS] = [2 ** 14, 1024];

/** A call for some tensors, which brings a sum of each workgroup; then one that adds these up. */
export const sumOfSquaresOnWebGpu = [
  onWebGpu(sumOfSquaresForward, (tensors, { run, output, scratch }) => {
    const shares = tensors.map((x) => {
      const count = sizeOf(x.shape);
      return { x, count, groups: Math.min(MOST_GROUPS, Math.ceil(count / SHARE)) };
    });
    const groupsOf = (some: typeof shares) => some.reduce((sum, { groups }) => sum + groups, 0);
    const [y, sums, count] = [output([]), scratch([groupsOf(shares)]), groupsOf(shares)];
    for (let i = 0; i < shares.length; i += AT_ONCE) {
      const [before, some] = [shares.slice(0, i), shares.slice(i, i + AT_ONCE)];
      run(sumOfSquares, { ...argumentsOf(some), sums, at: groupsOf(before) }, groupsOf(some));
    }
    run(sumUp, { x: sums, sums: y, count }, 1);
    return [y];
  }),
];
