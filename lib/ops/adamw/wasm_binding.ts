import { onWasm } from '../on_wasm.ts';
import { sizeOf } from '../shapes.ts';
import { pieces } from '../thread_pool.ts';
import { adamWUpdate } from './adamw.ts';

export const adamWOnWasm = [
  onWasm(adamWUpdate, ([param, gradient, m, v], { run, output }, factors) => {
    const { shape } = param;
    const [nextParam, nextM, nextV] = [output(shape), output(shape), output(shape)];
    const [rest1, rest2] = [1 - factors.beta1, 1 - factors.beta2];
    run.adamW({ param, gradient, m, v, nextParam, nextM, nextV, rest1, rest2, ...factors }, pieces(sizeOf(shape), 7));
    return [nextParam, nextM, nextV];
  }),
];
