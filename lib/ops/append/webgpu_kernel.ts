/** Blocks copied into places that lie further apart: a thread a number. */
import { wgsl } from '../wgsl.ts';

/** `y[batch · stride + first + i] = x[batch · step + i]` for the first `width` numbers of each block. */
export const placeBlocks = wgsl({
  name: 'placeBlocks',
  inputs: { x: 'f32' },
  outputs: { y: 'f32' },
  numbers: { count: 'u32', first: 'u32', width: 'u32', step: 'u32', stride: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let block = i / u.width;
  y[block * u.stride + u.first + i % u.width] = x[block * u.step + i % u.width];
}`,
});
