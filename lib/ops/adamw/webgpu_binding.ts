import { onWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { adamWUpdate } from './adamw.ts';
import { adamW } from './webgpu_kernel.ts';

export const adamWOnWebGpu = [
  onWebGpu(adamWUpdate, ([oldParam, gradient, oldM, oldV], { run, writable }, factors) => {
    const count = sizeOf(oldParam.shape);
    const [rest1, rest2] = [1 - factors.beta1, 1 - factors.beta2];
    const [param, m, v] = [oldParam, oldM, oldV].map(writable);
    run(adamW, { gradient, param, m, v, count, rest1, rest2, ...factors }, Math.ceil(count / adamW.threads));
    return [param, m, v];
  }),
];
