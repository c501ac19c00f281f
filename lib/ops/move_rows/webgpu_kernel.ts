/** Rows copied whole: `y[i] = x[index[i]]`, a thread a number. */
import { wgsl } from '../wgsl.ts';

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

/**
 * `y[s] = Σ x[i]` over the rows i with `segments[i] = s`: a workgroup a row of y, whose threads look for its rows of x, and add
 * them up in their order.
 */
export const sumSegments = wgsl({
  name: 'sumSegments',
  inputs: { x: 'f32', segments: 'i32' },
  outputs: { y: 'f32' },
  numbers: { rows: 'u32', width: 'u32' },
  threads: 64,
  source: `
var<workgroup> found: array<u32, THREADS>;
var<workgroup> any: atomic<u32>;
fn kernel(segment: u32, thread: u32) {
  for (var d = thread; d < u.width; d += THREADS) { y[segment * u.width + d] = 0; }
  for (var first = 0u; first < u.rows; first += THREADS) {
    if (thread == 0) { atomicStore(&any, 0u); }
    workgroupBarrier();
    let i = first + thread;
    found[thread] = 0;
    if (i < u.rows && u32(segments[min(i, u.rows - 1)]) == segment) {
      found[thread] = 1;
      atomicStore(&any, 1u);
    }
    workgroupBarrier();
    if (atomicLoad(&any) == 1) {
      for (var n = 0u; n < THREADS; n++) {
        if (found[n] == 0) { continue; }
        for (var d = thread; d < u.width; d += THREADS) { y[segment * u.width + d] += x[(first + n) * u.width + d]; }
      }
    }
    workgroupBarrier();
  }
}`,
});
