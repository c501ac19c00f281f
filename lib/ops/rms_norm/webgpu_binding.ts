import { onWebGpu } from '../on_webgpu.ts';
import { rmsNormForward, rmsNormGradient } from './rms_norm.ts';
import { addRows, rmsNorm, rmsNormGrad, rmsNormWeightGrad } from './webgpu_kernel.ts';

/** Rows that a thread adds up: some hundred pieces of them keep a GPU busy. */
const GRAIN = 32;

export const rmsNormOnWebGpu = [
  onWebGpu(rmsNormForward, ([x, weight], { run, output }, { epsilon }) => {
    const [rows, width] = x.shape;
    const [y, inverse] = [output(x.shape), output([rows, 1])];
    run(rmsNorm, { x, weight, y, inverse, width, epsilon }, rows);
    return [y, inverse];
  }),
  onWebGpu(rmsNormGradient, ([dy, x, weight, inverse], { run, output, scratch }) => {
    const [rows, width] = x.shape;
    const [dx, dw] = [output(x.shape), output(weight.shape)];
    run(rmsNormGrad, { dy, x, weight, inverse, dx, width }, rows);
    const [across, pieces] = [Math.ceil(width / 64), Math.ceil(rows / GRAIN)];
    const sums = scratch([pieces, width]);
    run(rmsNormWeightGrad, { dy, x, inverse, dw: sums, width, rows, grain: GRAIN }, across * pieces);
    run(addRows, { x: sums, y: dw, width, rows: pieces }, across);
    return [dx, dw];
  }),
];
