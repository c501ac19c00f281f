/** Two tensors number by number, the smaller one again and again: a thread a number. */
import { wgsl } from '../wgsl.ts';

/** `c = a ∘ b` */
export const pairs = (name: string, operator: '+' | '*') =>
  wgsl({
    name,
    inputs: { a: 'f32', b: 'f32' },
    outputs: { c: 'f32' },
    numbers: { count: 'u32', sizeA: 'u32', sizeB: 'u32' },
    threads: 64,
    source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  c[i] = a[i % u.sizeA] ${operator} b[i % u.sizeB];
}`,
  });
