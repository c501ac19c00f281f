/** Log-probability of one token a row under `softmax(logits / T)`, and the entropy of that distribution. */
import { address, exp1, exp4, largest, log, splat, sum4 } from '../wasm_simd';

/** Floats that are added up in float32 before their sum goes to a float64: rounding stays that of a short sum. */
const BLOCK = 512;

/**
 * With z = (logits − their maximum) / T and S = Σ eᶻ: `log p = z[token] − log S`, `entropy = log S − Σ eᶻ z / S`.
 * @param out - receives the log-probabilities of all `count` rows, then their entropies
 */
export function tokenLogProbs(
  logits: usize,
  tokens: usize,
  out: usize,
  count: i32,
  vocabulary: i32,
  temperature: f32,
  begin: i32,
  end: i32,
): void {
  logits = address(logits, begin * vocabulary);
  for (let row = begin; row < end; row++) {
    const top = largest(logits, vocabulary);
    const tops = splat(top);
    const scale = splat(1 / temperature);
    let sum: f64 = 0;
    let weighted: f64 = 0;
    let i = 0;
    while (i + 4 <= vocabulary) {
      const blockEnd = min(i + BLOCK, vocabulary & ~3);
      let sums = splat(0);
      let products = splat(0);
      for (; i < blockEnd; i += 4) {
        const z = f32x4.mul(f32x4.sub(v128.load(logits + ((<usize>i) << 2)), tops), scale);
        const e = exp4(z);
        sums = f32x4.add(sums, e);
        products = f32x4.add(products, f32x4.mul(e, z));
      }
      sum += <f64>sum4(sums);
      weighted += <f64>sum4(products);
    }
    for (; i < vocabulary; i++) {
      const z = (load<f32>(logits + ((<usize>i) << 2)) - top) / temperature;
      const e = exp1(z);
      sum += <f64>e;
      weighted += <f64>(e * z);
    }
    const chosen = load<f32>(logits + ((<usize>load<i32>(tokens + ((<usize>row) << 2))) << 2));
    const logSum = log(sum);
    store<f32>(out + ((<usize>row) << 2), <f32>(<f64>((chosen - top) / temperature) - logSum));
    store<f32>(out + ((<usize>(count + row)) << 2), <f32>(logSum - weighted / sum));
    logits += (<usize>vocabulary) << 2;
  }
}

/** Σ exp(scale · (x − shift)) over `count` floats. */
function sumOfExponentials(x: usize, count: i32, shift: f32, scale: f32): f64 {
  let sum: f64 = 0;
  let i = 0;
  while (i + 4 <= count) {
    const end = min(i + BLOCK, count & ~3);
    let sums = splat(0);
    for (; i < end; i += 4) {
      sums = f32x4.add(sums, exp4(f32x4.mul(f32x4.sub(v128.load(x + ((<usize>i) << 2)), splat(shift)), splat(scale))));
    }
    sum += <f64>sum4(sums);
  }
  for (; i < count; i++) sum += <f64>exp1((load<f32>(x + ((<usize>i) << 2)) - shift) * scale);
  return sum;
}

/**
 * The gradient of the logits, in their place: `(dlogp · (1[token] − p) − dentropy · p · (log p + entropy)) / T`.
 * @param values - what {@link tokenLogProbs} has put out
 * @param dy - the gradients of those, in the same order
 */
export function tokenLogProbsGrad(
  dy: usize,
  logits: usize,
  tokens: usize,
  values: usize,
  count: i32,
  vocabulary: i32,
  temperature: f32,
  begin: i32,
  end: i32,
): void {
  logits = address(logits, begin * vocabulary);
  for (let row = begin; row < end; row++) {
    const at = (<usize>row) << 2;
    const token = logits + ((<usize>load<i32>(tokens + at)) << 2);
    const second = at + ((<usize>count) << 2);
    const entropy = load<f32>(values + second);
    const scale: f32 = 1 / temperature;
    const top = largest(logits, vocabulary);
    const z = (load<f32>(token) - top) * scale;
    // The logarithm of Σ exp((logits − top) / T): the difference of two large numbers would have lost its digits.
    const logSum: f32 = z > -8 ? z - load<f32>(values + at) : <f32>log(sumOfExponentials(logits, vocabulary, top, scale));
    const dLogProb = load<f32>(dy + at) * scale;
    const dEntropy = load<f32>(dy + second) * scale;
    let i = 0;
    if (dEntropy == 0) {
      for (; i + 4 <= vocabulary; i += 4) {
        const z = logits + ((<usize>i) << 2);
        const logP = f32x4.sub(f32x4.mul(f32x4.sub(v128.load(z), splat(top)), splat(scale)), splat(logSum));
        v128.store(z, f32x4.mul(exp4(logP), splat(-dLogProb)));
      }
    }
    for (; i + 4 <= vocabulary; i += 4) {
      const z = logits + ((<usize>i) << 2);
      const logP = f32x4.sub(f32x4.mul(f32x4.sub(v128.load(z), splat(top)), splat(scale)), splat(logSum));
      const slope = f32x4.add(splat(dLogProb), f32x4.mul(splat(dEntropy), f32x4.add(logP, splat(entropy))));
      v128.store(z, f32x4.neg(f32x4.mul(exp4(logP), slope)));
    }
    for (; i < vocabulary; i++) {
      const z = logits + ((<usize>i) << 2);
      const logP = (load<f32>(z) - top) * scale - logSum;
      store<f32>(z, -exp1(logP) * (dLogProb + dEntropy * (logP + entropy)));
    }
    store<f32>(token, load<f32>(token) + dLogProb);
    logits += (<usize>vocabulary) << 2;
  }
}
