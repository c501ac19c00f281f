/** Log-probability of one token a row under `softmax(logits / T)`, and the entropy of that distribution: a workgroup a row. */
import { wgsl } from '../wgsl.ts';

/** The largest logit of a row, and with z = (logits − it) / T, the logarithm of Σ eᶻ. */
const NORMALISERS = `
fn topOf(begin: u32, thread: u32) -> f32 {
  var top = -3e38;
  for (var i = thread; i < u.vocabulary; i += THREADS) { top = max(top, logits[begin + i]); }
  return largestOfGroup(top, thread);
}
fn totalOf(begin: u32, top: f32, thread: u32) -> f32 {
  var sum = 0.0;
  for (var i = thread; i < u.vocabulary; i += THREADS) { sum += exp((logits[begin + i] - top) / u.temperature); }
  return sumOfGroup(sum, thread);
}`;

/**
 * With z as above and S = Σ eᶻ: `log p = z[token] − log S`, `entropy = log S − Σ eᶻ z / S`. `out` receives the
 * log-probabilities of all rows, then their entropies.
 */
export const tokenLogProbs = wgsl({
  name: 'tokenLogProbs',
  inputs: { logits: 'f32', tokens: 'i32' },
  outputs: { out: 'f32' },
  numbers: { count: 'u32', vocabulary: 'u32', temperature: 'f32' },
  threads: 256,
  source: `${NORMALISERS}
fn kernel(row: u32, thread: u32) {
  let begin = row * u.vocabulary;
  let top = topOf(begin, thread);
  let total = totalOf(begin, top, thread);
  var products = 0.0;
  for (var i = thread; i < u.vocabulary; i += THREADS) {
    let z = (logits[begin + i] - top) / u.temperature;
    products += exp(z) * z;
  }
  let weighted = sumOfGroup(products, thread);
  if (thread == 0) {
    out[row] = (logits[begin + u32(tokens[row])] - top) / u.temperature - log(total);
    out[u.count + row] = log(total) - weighted / total;
  }
}`,
});

/** The gradient of the logits, in their place: `(dlogp · (1[token] − p) − dentropy · p · (log p + entropy)) / T`. */
export const tokenLogProbsGrad = wgsl({
  name: 'tokenLogProbsGrad',
  inputs: { dy: 'f32', tokens: 'i32', values: 'f32' },
  outputs: { logits: 'f32' },
  numbers: { count: 'u32', vocabulary: 'u32', temperature: 'f32' },
  threads: 256,
  source: `${NORMALISERS}
fn kernel(row: u32, thread: u32) {
  let begin = row * u.vocabulary;
  let top = topOf(begin, thread);
  let logTotal = log(totalOf(begin, top, thread));
  let entropy = values[u.count + row];
  let dLogProb = dy[row] / u.temperature;
  let dEntropy = dy[u.count + row] / u.temperature;
  let token = u32(tokens[row]);
  for (var i = thread; i < u.vocabulary; i += THREADS) {
    let logP = (logits[begin + i] - top) / u.temperature - logTotal;
    let slope = -exp(logP) * (dLogProb + dEntropy * (logP + entropy));
    logits[begin + i] = slope + select(0.0, dLogProb, i == token);
  }
}`,
});
