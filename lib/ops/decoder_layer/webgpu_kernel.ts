/** What a layer of a decoder needs, where a few rows bring one token each, beside the kernels of other operations. */
import { attendInTurn, OF_QUERY } from '../attention/webgpu_kernel.ts';
import { PARTIAL, SMALL_TILE, splitOverK } from '../mat_mul/webgpu_kernel.ts';
import { wgsl } from '../wgsl.ts';

const rowOfX = (r: number) => `x[min(row + ${r}, u.m - 1) * u.k + k]`;
const rowOfW = (matrix: number) => (i: number) => `w${matrix}[min(column + ${i}, u.n${matrix} - 1) * u.k + k]`;

/** `y = [x W₁ᵀ + b₁ | x W₂ᵀ + b₂ | x W₃ᵀ + b₃]`; the third is left out where `n3` is 0, biases where `biased` is. */
export const project = wgsl({
  name: 'project',
  inputs: { x: 'f32', w1: 'f32', w2: 'f32', w3: 'f32', b1: 'f32', b2: 'f32', b3: 'f32' },
  outputs: { y: 'f32' },
  numbers: { m: 'u32', k: 'u32', n1: 'u32', n2: 'u32', n3: 'u32', across: 'u32', biased: 'u32' },
  threads: 64,
  source: `${PARTIAL}
fn kernel(group: u32, thread: u32) {
  let row = group / u.across * ${SMALL_TILE};
  // A tile belongs to one of the matrices.
  let tiles1 = (u.n1 + ${SMALL_TILE - 1}) / ${SMALL_TILE};
  let tiles2 = (u.n2 + ${SMALL_TILE - 1}) / ${SMALL_TILE};
  let tile = group % u.across;
  let matrix = select(select(2u, 1u, tile < tiles1 + tiles2), 0u, tile < tiles1);
  let column = (tile - array(0u, tiles1, tiles1 + tiles2)[matrix]) * ${SMALL_TILE};
  ${splitOverK(rowOfX, { 'matrix == 0': rowOfW(1), 'matrix == 1': rowOfW(2), 'matrix == 2': rowOfW(3) })}
  let ownRow = row + thread / 8;
  let ownColumn = column + thread % 8;
  if (ownRow >= u.m || ownColumn >= array(u.n1, u.n2, u.n3)[matrix]) { return; }
  if (u.biased == 1) {
    switch (matrix) {
      case 0: { total += b1[ownColumn]; }
      case 1: { total += b2[ownColumn]; }
      default: { total += b3[ownColumn]; }
    }
  }
  y[ownRow * (u.n1 + u.n2 + u.n3) + array(0u, u.n1, u.n1 + u.n2)[matrix] + ownColumn] = total;
}`,
});

/** `y = y + x Wᵀ + b` */
export const addProjected = wgsl({
  name: 'addProjected',
  inputs: { x: 'f32', w1: 'f32', b1: 'f32' },
  outputs: { y: 'f32' },
  numbers: { m: 'u32', k: 'u32', n1: 'u32', across: 'u32', biased: 'u32' },
  threads: 64,
  source: `${PARTIAL}
fn kernel(group: u32, thread: u32) {
  let row = group / u.across * ${SMALL_TILE};
  let column = group % u.across * ${SMALL_TILE};
  ${splitOverK(rowOfX, { true: rowOfW(1) })}
  let ownRow = row + thread / 8;
  let ownColumn = column + thread % 8;
  if (ownRow >= u.m || ownColumn >= u.n1) { return; }
  if (u.biased == 1) { total += b1[ownColumn]; }
  y[ownRow * u.n1 + ownColumn] += total;
}`,
});

/**
 * A head of a row's new token, queries and keys turned by their position's angle (after a norm where `normed`): queries in
 * their place, keys and values into the cache, behind those of `length` tokens. A workgroup a head of `[q | k | v]`.
 */
export const placeHeads = wgsl({
  name: 'placeHeads',
  inputs: { cosines: 'f32', sines: 'f32', qNorm: 'f32', kNorm: 'f32' },
  outputs: { qkv: 'f32', keys: 'f32', values: 'f32' },
  numbers: {
    ...({ heads: 'u32', kvHeads: 'u32', dim: 'u32', slotCount: 'u32', room: 'u32', length: 'u32' } as const),
    ...({ normed: 'u32', epsilon: 'f32' } as const),
  },
  data: { slots: 'u32' },
  threads: 32,
  source: `
fn kernel(group: u32, thread: u32) {
  let all = u.heads + 2 * u.kvHeads;
  let row = group / all;
  let head = group % all;
  let begin = group * u.dim;
  let halfDim = u.dim / 2;
  // Of keys and values: the place in the cache.
  let kvHead = (head - min(head, u.heads)) % u.kvHeads;
  let to = ((kvHead * u.slotCount + slots[row]) * u.room + u.length) * u.dim;
  if (head >= u.heads + u.kvHeads) {
    for (var d = thread; d < u.dim; d += THREADS) { values[to + d] = qkv[begin + d]; }
    return;
  }
  var inverse = 1.0;
  if (u.normed == 1) {
    var squares = 0.0;
    for (var d = thread; d < u.dim; d += THREADS) { squares += qkv[begin + d] * qkv[begin + d]; }
    inverse = 1 / sqrt(sumOfGroup(squares, thread) / f32(u.dim) + u.epsilon);
  }
  for (var i = thread; i < halfDim; i += THREADS) {
    let c = cosines[row * halfDim + i];
    let s = sines[row * halfDim + i];
    var a = qkv[begin + i] * inverse;
    var b = qkv[begin + halfDim + i] * inverse;
    if (u.normed == 1 && head < u.heads) { a *= qNorm[i]; b *= qNorm[halfDim + i]; }
    if (u.normed == 1 && head >= u.heads) { a *= kNorm[i]; b *= kNorm[halfDim + i]; }
    if (head < u.heads) {
      qkv[begin + i] = a * c - b * s;
      qkv[begin + halfDim + i] = b * c + a * s;
    } else {
      keys[to + i] = a * c - b * s;
      keys[to + halfDim + i] = b * c + a * s;
    }
  }
}`,
});

/**
 * Attention of a head of a row's new token over its prompt's keys and its own: a workgroup a head, a thread a key, then a
 * dimension. The list holds the slots of all rows, then, where `padded`, the tokens of all prompts.
 */
export const attendOnce = wgsl({
  name: 'attendOnce',
  inputs: { qkv: 'f32', prefixKeys: 'f32', prefixValues: 'f32', keys: 'f32', values: 'f32' },
  outputs: { out: 'f32' },
  numbers: {
    ...({
      rows: 'u32',
      heads: 'u32',
      kvHeads: 'u32',
      dim: 'u32',
      slotCount: 'u32',
      group: 'u32',
      room: 'u32',
    } as const),
    ...({ length: 'u32', prefixLength: 'u32', padded: 'u32', scale: 'f32' } as const),
  },
  data: { lists: 'u32' },
  threads: 64,
  source: `${OF_QUERY}
fn kernel(i: u32, thread: u32) {
  let row = i / u.heads;
  let head = i % u.heads;
  let own = (row * (u.heads + 2 * u.kvHeads) + head) * u.dim;
  for (var d = thread; d < u.dim; d += THREADS) { query[d] = qkv[own + d] * u.scale; }
  workgroupBarrier();
  let kvHead = head / (u.heads / u.kvHeads);
  let slot = lists[row];
  let prompt = slot / u.group;
  ${attendInTurn(
    `
    var seen = u.length + 1; // the new token's, too
    var begin = (kvHead * u.slotCount + slot) * u.room * u.dim;
    if (s == 0) {
      seen = u.prefixLength;
      if (u.padded == 1) { seen = lists[u.rows + prompt]; }
      begin = (kvHead * (u.slotCount / u.group) + prompt) * u.prefixLength * u.dim;
    }
`,
    [
      { keys: 'prefixKeys', values: 'prefixValues' },
      { keys: 'keys', values: 'values' },
    ],
  )}
}`,
});

/** `y = silu(g) · u` of `[g | u]` in each row: a thread a number. */
export const gatePairs = wgsl({
  name: 'gatePairs',
  inputs: { gateUp: 'f32' },
  outputs: { y: 'f32' },
  numbers: { count: 'u32', width: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let at = i / u.width * 2 * u.width + i % u.width;
  let g = gateUp[at];
  y[i] = g / (1 + exp(min(-g, 88))) * gateUp[at + u.width];
}`,
});
