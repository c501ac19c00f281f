import { onWasm } from '../on_wasm.ts';
import { sizeOf } from '../wasm_backend.ts';
import { adamWUpdate } from './adamw.ts';

export const adamWOnWasm = [
  onWasm(adamWUpdate, ([param, gradient, m, v], { run, output }, factors) => {
    const { shape } = param;
    const [nextParam, nextM, nextV] = [output(shape), output(shape), output(shape)];
    const [count, rest1, rest2] = [sizeOf(shape), 1 - factors.beta1, 1 - factors.beta2];
    run.adamW({ param, gradient, m, v, nextParam, nextM, nextV, count, rest1, rest2, ...factors });
    return [nextParam, nextM, nextV];
  }),
];
