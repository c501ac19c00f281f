/**
 * Softmax attention (Vaswani et al. 2017, eq. 1) of each query over the keys of several segments, and its gradient. The
 * probabilities are never written down: the gradient computes them again from two numbers of each query (Dao et al. 2022,
 * "FlashAttention").
 */
import { address, dot, dots, exp1, exp4, largest, multiplyAdd, splat, sum4, thread } from '../wasm_simd';

/**
 * A stretch of keys, as a record in memory. Query i reads batch i / queriesPerBatch, and of its `length` keys the first
 * visible[(i / divisor) mod modulus]; all of them where `visible` is 0.
 */
@unmanaged
class Segment {
  k: usize;
  v: usize;
  /** Where the gradients of k and v go; not used forward. */
  dK: usize;
  dV: usize;
  length: i32;
  queriesPerBatch: i32;
  visible: usize;
  divisor: i32;
  modulus: i32;
}

// @ts-ignore: decorators of functions are AssemblyScript's
@inline
function keysOf(segment: Segment, query: i32): i32 {
  if (segment.visible == 0) return segment.length;
  return load<i32>(segment.visible + (<usize>((query / segment.divisor) % segment.modulus) << 2));
}

/** Where the keys (or values) of a query's batch begin. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
function batchOf(segment: Segment, base: usize, query: i32, dim: i32): usize {
  return base + (<usize>((query / segment.queriesPerBatch) * segment.length * dim) << 2);
}

/** `y += Σ pⱼ vⱼ` over `count` values. */
function addWeighted(y: usize, p: usize, v: usize, count: i32, dim: i32): void {
  const bytes = <usize>dim << 2;
  const end = p + (<usize>count << 2);
  let i = 0;
  for (; i + 16 <= dim; i += 16) {
    const at = <usize>i << 2;
    let a = v128.load(y + at, 0);
    let b = v128.load(y + at, 16);
    let c = v128.load(y + at, 32);
    let d = v128.load(y + at, 48);
    let x = v + at;
    for (let w = p; w < end; w += 4) {
      const weight = v128.load32_splat(w);
      a = multiplyAdd(weight, v128.load(x, 0), a);
      b = multiplyAdd(weight, v128.load(x, 16), b);
      c = multiplyAdd(weight, v128.load(x, 32), c);
      d = multiplyAdd(weight, v128.load(x, 48), d);
      x += bytes;
    }
    v128.store(y + at, a, 0);
    v128.store(y + at, b, 16);
    v128.store(y + at, c, 32);
    v128.store(y + at, d, 48);
  }
  for (; i + 4 <= dim; i += 4) {
    const at = <usize>i << 2;
    let a = v128.load(y + at);
    let x = v + at;
    for (let w = p; w < end; w += 4) {
      a = multiplyAdd(v128.load32_splat(w), v128.load(x), a);
      x += bytes;
    }
    v128.store(y + at, a);
  }
  for (; i < dim; i++) {
    let x = v + (<usize>i << 2);
    let sum = load<f32>(y + (<usize>i << 2));
    for (let w = p; w < end; w += 4) {
      sum += load<f32>(w) * load<f32>(x);
      x += bytes;
    }
    store<f32>(y + (<usize>i << 2), sum);
  }
}

/** `yⱼ += scale · pⱼ · x` for `count` rows y. */
function addOuter(y: usize, p: usize, x: usize, count: i32, dim: i32, scale: f32): void {
  const bytes = <usize>dim << 2;
  const end = p + (<usize>count << 2);
  const factor = splat(scale);
  let i = 0;
  for (; i + 16 <= dim; i += 16) {
    const at = <usize>i << 2;
    const a = f32x4.mul(factor, v128.load(x + at, 0));
    const b = f32x4.mul(factor, v128.load(x + at, 16));
    const c = f32x4.mul(factor, v128.load(x + at, 32));
    const d = f32x4.mul(factor, v128.load(x + at, 48));
    let row = y + at;
    for (let w = p; w < end; w += 4) {
      const weight = v128.load32_splat(w);
      v128.store(row, multiplyAdd(weight, a, v128.load(row, 0)), 0);
      v128.store(row, multiplyAdd(weight, b, v128.load(row, 16)), 16);
      v128.store(row, multiplyAdd(weight, c, v128.load(row, 32)), 32);
      v128.store(row, multiplyAdd(weight, d, v128.load(row, 48)), 48);
      row += bytes;
    }
  }
  for (; i + 4 <= dim; i += 4) {
    const at = <usize>i << 2;
    const a = f32x4.mul(factor, v128.load(x + at));
    let row = y + at;
    for (let w = p; w < end; w += 4) {
      v128.store(row, multiplyAdd(v128.load32_splat(w), a, v128.load(row)));
      row += bytes;
    }
  }
  for (; i < dim; i++) {
    const at = <usize>i << 2;
    const factor = scale * load<f32>(x + at);
    let row = y + at;
    for (let w = p; w < end; w += 4) {
      store<f32>(row, load<f32>(row) + load<f32>(w) * factor);
      row += bytes;
    }
  }
}

/** `xⱼ ← exp(xⱼ − shift)`; returns their sum. */
function exponentials(x: usize, count: i32, shift: f32): f32 {
  let sums = splat(0);
  let j = 0;
  for (; j + 4 <= count; j += 4) {
    const at = x + (<usize>j << 2);
    const e = exp4(f32x4.sub(v128.load(at), splat(shift)));
    v128.store(at, e);
    sums = f32x4.add(sums, e);
  }
  let sum = sum4(sums);
  for (; j < count; j++) {
    const at = x + (<usize>j << 2);
    const e = exp1(load<f32>(at) - shift);
    store<f32>(at, e);
    sum += e;
  }
  return sum;
}

/**
 * `out = softmax(scale · q [K₁ | K₂ | …]ᵀ) [V₁ ; V₂ ; …]`.
 * @param normalisers - receives two numbers of each query: its largest score, and 1 / Σ exp(score − largest)
 * @param scratch - room for `scratchSize` floats for each thread: one for each key of all segments
 */
export function attention(
  q: usize,
  segments: usize,
  segmentCount: i32,
  out: usize,
  normalisers: usize,
  scratch: usize,
  scratchSize: i32,
  dim: i32,
  scale: f32,
  begin: i32,
  end: i32,
): void {
  const bytes = <usize>dim << 2;
  const size = offsetof<Segment>();
  q = address(q, begin * dim);
  out = address(out, begin * dim);
  scratch = address(scratch, thread * scratchSize);
  for (let i = begin; i < end; i++) {
    let count = 0;
    for (let s = 0; s < segmentCount; s++) {
      const segment = changetype<Segment>(segments + <usize>s * size);
      const seen = keysOf(segment, i);
      dots(q, batchOf(segment, segment.k, i, dim), scratch + (<usize>count << 2), seen, dim, scale);
      count += seen;
    }
    const top = largest(scratch, count);
    const sum = exponentials(scratch, count, top);
    const inverse: f32 = 1 / sum;
    store<f32>(normalisers + ((<usize>i) << 3), top);
    store<f32>(normalisers + ((<usize>i) << 3), inverse, 4);
    for (let j: usize = 0; j < bytes; j += 4) store<f32>(out + j, 0);
    let weights = scratch;
    for (let s = 0; s < segmentCount; s++) {
      const segment = changetype<Segment>(segments + <usize>s * size);
      const seen = keysOf(segment, i);
      addWeighted(out, weights, batchOf(segment, segment.v, i, dim), seen, dim);
      weights += <usize>seen << 2;
    }
    for (let j: usize = 0; j < bytes; j += 4) store<f32>(out + j, load<f32>(out + j) * inverse);
    q += bytes;
    out += bytes;
  }
}

/**
 * With p the probabilities and δ = dout · out: `dv = pᵀ dout`, `ds = p ∘ (dout vᵀ − δ)`, `dq = scale · ds k`,
 * `dk = scale · dsᵀ q`. The gradients of the segments must be zero before.
 * @param scratch - room for `scratchSize` floats for each thread: two for each key of all segments
 * @param share - how many queries may share keys: those of an item, of which `begin` and `end` count
 */
export function attentionGrad(
  dOut: usize,
  q: usize,
  segments: usize,
  segmentCount: i32,
  out: usize,
  normalisers: usize,
  dQ: usize,
  scratch: usize,
  scratchSize: i32,
  share: i32,
  dim: i32,
  scale: f32,
  begin: i32,
  end: i32,
): void {
  const bytes = <usize>dim << 2;
  const size = offsetof<Segment>();
  const first = begin * share;
  dOut = address(dOut, first * dim);
  q = address(q, first * dim);
  out = address(out, first * dim);
  dQ = address(dQ, first * dim);
  scratch = address(scratch, thread * scratchSize);
  for (let i = first; i < end * share; i++) {
    for (let j: usize = 0; j < bytes; j += 4) store<f32>(dQ + j, 0);
    // Of a query that nothing depends on (padding), nothing is to be computed.
    if (dot(dOut, dOut, dim) != 0) {
      const delta = dot(dOut, out, dim);
      const top = load<f32>(normalisers + (<usize>i << 3));
      const inverse = load<f32>(normalisers + (<usize>i << 3), 4);
      for (let s = 0; s < segmentCount; s++) {
        const segment = changetype<Segment>(segments + <usize>s * size);
        const seen = keysOf(segment, i);
        const k = batchOf(segment, segment.k, i, dim);
        const scratch2 = scratch + (<usize>seen << 2);
        dots(q, k, scratch, seen, dim, scale);
        exponentials(scratch, seen, top);
        dots(dOut, batchOf(segment, segment.v, i, dim), scratch2, seen, dim, 1);
        let j = 0;
        for (; j + 4 <= seen; j += 4) {
          const at = <usize>j << 2;
          const dP = f32x4.sub(v128.load(scratch2 + at), splat(delta));
          v128.store(scratch2 + at, f32x4.mul(f32x4.mul(v128.load(scratch + at), dP), splat(scale * inverse)));
        }
        for (; j < seen; j++) {
          const at = <usize>j << 2;
          store<f32>(scratch2 + at, load<f32>(scratch + at) * (load<f32>(scratch2 + at) - delta) * (scale * inverse));
        }
        addWeighted(dQ, scratch2, k, seen, dim);
        addOuter(batchOf(segment, segment.dK, i, dim), scratch2, q, seen, dim, 1);
        addOuter(batchOf(segment, segment.dV, i, dim), scratch, dOut, seen, dim, inverse);
      }
    }
    dOut += bytes;
    q += bytes;
    out += bytes;
    dQ += bytes;
  }
}
