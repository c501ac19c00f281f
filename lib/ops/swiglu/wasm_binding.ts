import { onWasm } from '../on_wasm.ts';
import { sizeOf } from '../shapes.ts';
import { pieces } from '../thread_pool.ts';
import { swiGluForward, swiGluGradient } from './swiglu.ts';

export const swiGluOnWasm = [
  onWasm(swiGluForward, ([gate, up], { run, output }) => {
    const y = output(gate.shape);
    run.swiGlu({ gate, up, y }, pieces(sizeOf(gate.shape), 8));
    return [y];
  }),
  onWasm(swiGluGradient, ([dy, gate, up], { run, output }) => {
    const [dGate, dUp] = [output(gate.shape), output(up.shape)];
    run.swiGluGrad({ dy, gate, up, dGate, dUp }, pieces(sizeOf(gate.shape), 8));
    return [dGate, dUp];
  }),
];
