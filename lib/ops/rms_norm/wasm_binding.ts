import { onWasm } from '../on_wasm.ts';
import { numberOfPieces, pieces } from '../thread_pool.ts';
import { rmsNormForward, rmsNormGradient } from './rms_norm.ts';

export const rmsNormOnWasm = [
  onWasm(rmsNormForward, ([x, weight], { run, output }, { epsilon }) => {
    const [rows, width] = x.shape;
    const [y, inverse] = [output(x.shape), output([rows, 1])];
    run.rmsNorm({ x, weight, y, inverse, width, epsilon }, pieces(rows, 2 * width));
    return [y, inverse];
  }),
  onWasm(rmsNormGradient, ([dy, x, weight, inverse], { run, output, scratch }) => {
    const [rows, width] = x.shape;
    const [dx, dw] = [output(x.shape), output(weight.shape)];
    const cut = pieces(rows, 4 * width);
    const sums = scratch(numberOfPieces(cut) * width);
    run.rmsNormGrad({ dy, x, weight, inverse, dx, dw: sums, width, grain: cut.grain }, cut);
    run.addRows({ x: sums, y: dw, rows: numberOfPieces(cut), width }, pieces(width, numberOfPieces(cut)));
    return [dx, dw];
  }),
];
