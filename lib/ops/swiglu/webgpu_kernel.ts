/** SwiGLU gate: `y = g · σ(g) · u` (Shazeer 2020), and its gradient: a thread a number. */
import { wgsl } from '../wgsl.ts';

export const swiGlu = wgsl({
  name: 'swiGlu',
  inputs: { gate: 'f32', up: 'f32' },
  outputs: { y: 'f32' },
  numbers: { count: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let g = gate[i];
  y[i] = g / (1 + exp(min(-g, 88))) * up[i];
}`,
});

/** `du = dy · g σ(g)`, `dg = dy · u · (σ + g σ (1 − σ))` */
export const swiGluGrad = wgsl({
  name: 'swiGluGrad',
  inputs: { dy: 'f32', gate: 'f32', up: 'f32' },
  outputs: { dGate: 'f32', dUp: 'f32' },
  numbers: { count: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let sigma = 1 / (1 + exp(min(-gate[i], 88)));
  let silu = gate[i] * sigma;
  dUp[i] = dy[i] * silu;
  dGate[i] = dy[i] * up[i] * (sigma + silu * (1 - sigma));
}`,
});
