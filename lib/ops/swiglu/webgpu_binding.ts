import { onWebGpu } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { swiGluForward, swiGluGradient } from './swiglu.ts';
import { swiGlu, swiGluGrad } from './webgpu_kernel.ts';

export const swiGluOnWebGpu = [
  onWebGpu(swiGluForward, ([gate, up], { run, output }) => {
    const [y, count] = [output(gate.shape), sizeOf(gate.shape)];
    run(swiGlu, { gate, up, y, count }, Math.ceil(count / swiGlu.threads));
    return [y];
  }),
  onWebGpu(swiGluGradient, ([dy, gate, up], { run, output }) => {
    const [dGate, dUp, count] = [output(gate.shape), output(up.shape), sizeOf(gate.shape)];
    run(swiGluGrad, { dy, gate, up, dGate, dUp, count }, Math.ceil(count / swiGluGrad.threads));
    return [dGate, dUp];
  }),
];
