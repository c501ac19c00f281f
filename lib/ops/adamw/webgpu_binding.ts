import { onWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { adamWUpdate } from './adamw.ts';
import { adamW } from './webgpu_kernel.ts';

export const adamWOnWebGpu = [
  onWebGpu(adamWUpdate, ([param, gradient, m, v], { run, output }, factors) => {
    const { shape } = param;
    const [nextParam, nextM, nextV, count] = [output(shape), output(shape), output(shape), sizeOf(shape)];
    const [rest1, rest2] = [1 - factors.beta1, 1 - factors.beta2];
    run(
      adamW,
      { param, gradient, m, v, nextParam, nextM, nextV, count, rest1, rest2, ...factors },
      Math.ceil(count / adamW.threads),
    );
    return [nextParam, nextM, nextV];
  }),
];
