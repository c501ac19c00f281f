import { onWasm } from '../on_wasm.ts';
import { rmsNormForward, rmsNormGradient } from './rms_norm.ts';

export const rmsNormOnWasm = [
  onWasm(rmsNormForward, ([x, weight], { run, output }, { epsilon }) => {
    const [rows, width] = x.shape;
    const [y, inverse] = [output(x.shape), output([rows, 1])];
    run.rmsNorm({ x, weight, y, inverse, rows, width, epsilon });
    return [y, inverse];
  }),
  onWasm(rmsNormGradient, ([dy, x, weight, inverse], { run, output }) => {
    const [rows, width] = x.shape;
    const [dx, dw] = [output(x.shape), output(weight.shape)];
    run.rmsNormGrad({ dy, x, weight, inverse, dx, dw, rows, width });
    return [dx, dw];
  }),
];
