/** Sums of many numbers in two steps, in which nothing is added by two threads at once: every run gives the same bits. */
import type * as tf from '@tensorflow/tfjs';
import { wgsl } from '../wgsl.ts';

/** The tensors that a call reads: with the sums they take the eight buffers that every device can bind. */
const EACH = [0, 1, 2, 3, 4, 5, 6] as const;
export const AT_ONCE = EACH.length;

type Named<Name extends string, T> = { [t in (typeof EACH)[number] as `${Name}${t}`]: T };
const named = <Name extends string, T>(name: Name, of: (t: number) => T) =>
  Object.fromEntries(EACH.map((t) => [name + t, of(t)])) as Named<Name, T>;

type Share = { x: tf.TensorInfo; count: number; groups: number };

/** What a call gets: a tensor that is not there has no workgroups. */
export const argumentsOf = (shares: Share[]) => ({
  ...named('x', (t) => (shares[t] ?? shares[0]).x),
  ...named('count', (t) => shares[t]?.count ?? 0),
  ...named('groups', (t) => shares[t]?.groups ?? 0),
});

const listOf = (name: string) => `array(${EACH.map((t) => `u.${name}${t}`)})`;

/** `sums[at + group]` receives what each workgroup has found in its share of its tensor. */
export const sumOfSquares = wgsl({
  name: 'sumOfSquares',
  inputs: named('x', () => 'f32' as const),
  outputs: { sums: 'f32' },
  numbers: { ...named('count', () => 'u32' as const), ...named('groups', () => 'u32' as const), at: 'u32' },
  threads: 256,
  source: `
fn kernel(group: u32, thread: u32) {
  let groups = ${listOf('groups')};
  var tensor = 0;
  var share = group;
  while (share >= groups[tensor]) {
    share -= groups[tensor];
    tensor++;
  }
  let count = ${listOf('count')}[tensor];
  var sum = 0.0;
  for (var i = share * THREADS + thread; i < count; i += groups[tensor] * THREADS) {
    var x: f32;
    switch (tensor) {
      ${EACH.slice(1)
        .map((t) => `case ${t}: { x = x${t}[i]; }`)
        .join(' ')}
      default: { x = x0[i]; }
    }
    sum += x * x;
  }
  let total = sumOfGroup(sum, thread);
  if (thread == 0) { sums[u.at + group] = total; }
}`,
});

export const sumUp = wgsl({
  name: 'sumUp',
  inputs: { x: 'f32' },
  outputs: { sums: 'f32' },
  numbers: { count: 'u32' },
  threads: 256,
  source: `
fn kernel(group: u32, thread: u32) {
  var sum = 0.0;
  for (var i = thread; i < u.count; i += THREADS) { sum += x[i]; }
  let total = sumOfGroup(sum, thread);
  if (thread == 0) { sums[group] = total; }
}`,
});
