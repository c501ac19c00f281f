/** Sums of many numbers in two steps, in which nothing is added by two threads at once: every run gives the same bits. */
import { wgsl } from '../on_webgpu.ts';

/** `sums` receives what each workgroup has found in its share of x. */
const sumOf = (name: string, term: string) =>
  wgsl({
    name,
    inputs: { x: 'f32' },
    outputs: { sums: 'f32' },
    numbers: { count: 'u32' },
    threads: 256,
    source: `
fn kernel(group: u32, thread: u32) {
  var sum = 0.0;
  for (var i = group * THREADS + thread; i < u.count; i += u.groups * THREADS) { sum += ${term}; }
  let total = sumOfGroup(sum, thread);
  if (thread == 0) { sums[group] = total; }
}`,
  });

export const sumOfSquares = sumOf('sumOfSquares', 'x[i] * x[i]');
export const sumUp = sumOf('sumUp', 'x[i]');
