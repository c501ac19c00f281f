/**
 * Softmax attention (Vaswani et al. 2017, eq. 1) over up to two segments of keys, and its gradient. No matrix of scores is
 * ever written down: the softmax runs along with the keys, and the gradient computes the probabilities again from two numbers
 * of each query (Dao et al. 2022, "FlashAttention"). Nothing is added by several threads at once, so that every run of a
 * step gives the same bits.
 */
import { wgsl } from '../wgsl.ts';

/** The largest head dimension. */
export const MOST_DIM = 256;

/** Of segment s, query i reads batch `i / queriesPerBatch`, and of its keys the first `counts[(i / divisor) mod modulus]`. */
const KEYS_OF = `
fn keysOf(query: u32, size: u32, first: u32, divisor: u32, modulus: u32, slope: u32) -> u32 {
  if (modulus == 0) { return size; }
  let i = query / divisor % modulus;
  if (slope == 1) { return first + i; }
  return u32(counts[first + i]);
}`;

/** Arrays of the keys and values of a segment. */
type Segment = { keys: string; values: string };

/** The workgroup's memory that {@link attendInTurn} needs. */
export const OF_QUERY = `
var<workgroup> query: array<f32, ${MOST_DIM}>;
var<workgroup> weights: array<f32, THREADS>;`;

/**
 * Attention of `query` over two segments of keys, one after the other, into `out[i]`: a thread a key, then a dimension. The
 * softmax runs along: `top` is the largest score so far, `total` the sum of the exponentials.
 * @param segment - declares, for segment `s`, how many keys are `seen` and where they `begin`
 */
export const attendInTurn = (segment: string, [first, second]: [Segment, Segment]): string => `
  var top = -3e38;
  var total = 0.0;
  var sums = array<f32, ${MOST_DIM / 64}>();
  for (var s = 0; s < 2; s++) {
${segment}    for (var first = 0u; first < seen; first += THREADS) {
      let at = begin + (first + thread) * u.dim;
      let sees = first + thread < seen;
      var score = -3e38;
      if (sees) {
        score = 0;
        if (s == 0) { for (var d = 0u; d < u.dim; d++) { score += query[d] * ${first.keys}[at + d]; } }
        else { for (var d = 0u; d < u.dim; d++) { score += query[d] * ${second.keys}[at + d]; } }
      }
      let newTop = max(top, largestOfGroup(score, thread));
      let weight = select(0.0, exp(score - newTop), sees);
      weights[thread] = weight;
      let fade = exp(top - newTop);
      total = total * fade + sumOfGroup(weight, thread);
      let count = min(THREADS, seen - first);
      for (var d = thread; d < u.dim; d += THREADS) {
        let column = begin + first * u.dim + d;
        var sum = sums[d / THREADS] * fade;
        if (s == 0) { for (var j = 0u; j < count; j++) { sum += weights[j] * ${first.values}[column + j * u.dim]; } }
        else { for (var j = 0u; j < count; j++) { sum += weights[j] * ${second.values}[column + j * u.dim]; } }
        sums[d / THREADS] = sum;
      }
      top = newTop;
      workgroupBarrier();
    }
  }
  for (var d = thread; d < u.dim; d += THREADS) { out[i * u.dim + d] = sums[d / THREADS] / total; }
`;

/** `out = softmax(scale · q [K₁ | K₂]ᵀ) [V₁ ; V₂]`: a workgroup a query, a thread a key, then a dimension. */
export const attention = wgsl({
  name: 'attention',
  inputs: { q: 'f32', k1: 'f32', v1: 'f32', k2: 'f32', v2: 'f32' },
  outputs: { out: 'f32', normalisers: 'f32' },
  numbers: {
    dim: 'u32',
    scale: 'f32',
    ...({ size1: 'u32', share1: 'u32', first1: 'u32', divisor1: 'u32', modulus1: 'u32', slope1: 'u32' } as const),
    ...({ size2: 'u32', share2: 'u32', first2: 'u32', divisor2: 'u32', modulus2: 'u32', slope2: 'u32' } as const),
  },
  data: { counts: 'i32' },
  threads: 64,
  source: `${KEYS_OF}${OF_QUERY}
fn kernel(i: u32, thread: u32) {
  for (var d = thread; d < u.dim; d += THREADS) { query[d] = q[i * u.dim + d] * u.scale; }
  workgroupBarrier();
  ${attendInTurn(
    `
    var seen: u32;
    var begin: u32;
    if (s == 0) {
      seen = keysOf(i, u.size1, u.first1, u.divisor1, u.modulus1, u.slope1);
      begin = i / u.share1 * u.size1 * u.dim;
    } else {
      seen = keysOf(i, u.size2, u.first2, u.divisor2, u.modulus2, u.slope2);
      begin = i / u.share2 * u.size2 * u.dim;
    }
`,
    [
      { keys: 'k1', values: 'v1' },
      { keys: 'k2', values: 'v2' },
    ],
  )}
  if (thread == 0) {
    normalisers[2 * i] = top;
    normalisers[2 * i + 1] = 1 / total;
  }
}`,
});

/** Of each query, the two numbers that the forward pass has kept, and δ = dout · out. */
export const attentionDelta = wgsl({
  name: 'attentionDelta',
  inputs: { dOut: 'f32', value: 'f32', normalisers: 'f32' },
  outputs: { stats: 'f32' },
  numbers: { dim: 'u32' },
  threads: 32,
  source: `
fn kernel(i: u32, thread: u32) {
  var products = 0.0;
  for (var d = thread; d < u.dim; d += THREADS) { products += dOut[i * u.dim + d] * value[i * u.dim + d]; }
  let delta = sumOfGroup(products, thread);
  if (thread == 0) {
    stats[3 * i] = normalisers[2 * i];
    stats[3 * i + 1] = normalisers[2 * i + 1];
    stats[3 * i + 2] = delta;
  }
}`,
});

const ONE_SEGMENT = {
  dim: 'u32',
  scale: 'f32',
  size: 'u32',
  share: 'u32',
  first: 'u32',
  divisor: 'u32',
  modulus: 'u32',
  slope: 'u32',
} as const;

/** `ds = p ∘ (dout vᵀ − δ)`, `dq = scale · ds k` over the keys of one segment, added to that of the other if `add` is 1. */
export const attentionQueryGrad = wgsl({
  name: 'attentionQueryGrad',
  inputs: { dOut: 'f32', q: 'f32', stats: 'f32', k: 'f32', v: 'f32' },
  outputs: { dQ: 'f32' },
  numbers: { ...ONE_SEGMENT, add: 'u32' },
  data: { counts: 'i32' },
  threads: 64,
  source: `${KEYS_OF}
var<workgroup> query: array<f32, ${MOST_DIM}>;
var<workgroup> slope: array<f32, ${MOST_DIM}>;
var<workgroup> weights: array<f32, THREADS>;
fn kernel(i: u32, thread: u32) {
  for (var d = thread; d < u.dim; d += THREADS) {
    query[d] = q[i * u.dim + d] * u.scale;
    slope[d] = dOut[i * u.dim + d];
  }
  workgroupBarrier();
  let top = stats[3 * i];
  let inverse = stats[3 * i + 1];
  let delta = stats[3 * i + 2];
  var sums = array<f32, ${MOST_DIM / 64}>();
  let seen = keysOf(i, u.size, u.first, u.divisor, u.modulus, u.slope);
  let begin = i / u.share * u.size * u.dim;
  for (var first = 0u; first < seen; first += THREADS) {
    let at = begin + (first + thread) * u.dim;
    var weight = 0.0;
    if (first + thread < seen) {
      var score = 0.0;
      var dP = 0.0;
      for (var d = 0u; d < u.dim; d++) {
        score += query[d] * k[at + d];
        dP += slope[d] * v[at + d];
      }
      weight = exp(score - top) * inverse * (dP - delta) * u.scale;
    }
    weights[thread] = weight;
    workgroupBarrier();
    let count = min(THREADS, seen - first);
    for (var d = thread; d < u.dim; d += THREADS) {
      let column = begin + first * u.dim + d;
      var sum = sums[d / THREADS];
      for (var j = 0u; j < count; j++) { sum += weights[j] * k[column + j * u.dim]; }
      sums[d / THREADS] = sum;
    }
    workgroupBarrier();
  }
  for (var d = thread; d < u.dim; d += THREADS) {
    let at = i * u.dim + d;
    if (u.add == 1) { dQ[at] += sums[d / THREADS]; } else { dQ[at] = sums[d / THREADS]; }
  }
}`,
});

/** `dv = pᵀ dout`, `dk = scale · dsᵀ q` of one segment: a workgroup a key, a thread one of the queries that share it. */
export const attentionKeyGrad = wgsl({
  name: 'attentionKeyGrad',
  inputs: { dOut: 'f32', q: 'f32', stats: 'f32', k: 'f32', v: 'f32' },
  outputs: { dK: 'f32', dV: 'f32' },
  numbers: ONE_SEGMENT,
  data: { counts: 'i32' },
  threads: 64,
  source: `${KEYS_OF}
var<workgroup> key: array<f32, ${MOST_DIM}>;
var<workgroup> value: array<f32, ${MOST_DIM}>;
var<workgroup> weights: array<f32, THREADS>;
var<workgroup> slopes: array<f32, THREADS>;
fn kernel(j: u32, thread: u32) {
  for (var d = thread; d < u.dim; d += THREADS) {
    key[d] = k[j * u.dim + d] * u.scale;
    value[d] = v[j * u.dim + d];
  }
  workgroupBarrier();
  let begin = j / u.size * u.share;
  var dKs = array<f32, ${MOST_DIM / 64}>();
  var dVs = array<f32, ${MOST_DIM / 64}>();
  for (var first = begin; first < begin + u.share; first += THREADS) {
    let i = first + thread;
    var p = 0.0;
    var dS = 0.0;
    if (i < begin + u.share && j % u.size < keysOf(i, u.size, u.first, u.divisor, u.modulus, u.slope)) {
      var score = 0.0;
      var dP = 0.0;
      for (var d = 0u; d < u.dim; d++) {
        score += key[d] * q[i * u.dim + d];
        dP += value[d] * dOut[i * u.dim + d];
      }
      p = exp(score - stats[3 * i]) * stats[3 * i + 1];
      dS = p * (dP - stats[3 * i + 2]) * u.scale;
    }
    weights[thread] = p;
    slopes[thread] = dS;
    workgroupBarrier();
    let count = min(THREADS, begin + u.share - first);
    for (var d = thread; d < u.dim; d += THREADS) {
      var dKey = dKs[d / THREADS];
      var dValue = dVs[d / THREADS];
      for (var n = 0u; n < count; n++) {
        let at = (first + n) * u.dim + d;
        dKey += slopes[n] * q[at];
        dValue += weights[n] * dOut[at];
      }
      dKs[d / THREADS] = dKey;
      dVs[d / THREADS] = dValue;
    }
    workgroupBarrier();
  }
  for (var d = thread; d < u.dim; d += THREADS) {
    dK[j * u.dim + d] = dKs[d / THREADS];
    dV[j * u.dim + d] = dVs[d / THREADS];
  }
}`,
});
