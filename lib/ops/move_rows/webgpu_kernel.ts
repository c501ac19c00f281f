/** Rows copied whole: `y[i] = x[index[i]]`, a thread a number. */
import { wgsl } from '../on_webgpu.ts';

/** An index of `limit`, the number of rows of x, means a row of zeros. */
export const gatherRows = wgsl({
  name: 'gatherRows',
  inputs: { x: 'f32', index: 'i32' },
  outputs: { y: 'f32' },
  numbers: { count: 'u32', width: 'u32', limit: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let row = u32(index[i / u.width]);
  if (row < u.limit) { y[i] = x[row * u.width + i % u.width]; } else { y[i] = 0; }
}`,
});
