/** Draws a token a row from `softmax(logits / T)`, without writing the distribution down. */
import { address, exp1, exp4, largest, log, splat, sum4, thread } from '../wasm_simd';

/** Tokens whose probabilities are added up before one sum is kept: a draw looks for its block, then within it. */
const BLOCK = 64;

/**
 * Inverse of the cumulative distribution: the first token at which it exceeds the row's random number.
 * @param uniforms - a float64 in [0, 1) for each row; not used where `greedy`
 * @param sums - room for ⌈V / 64⌉ float64 for each thread
 * @param greedy - not 0: takes the most likely token, the first of several
 * @param tokens - receives the ids
 * @param logProbs - receives their log-probabilities
 */
export function sampleTokens(
  logits: usize,
  uniforms: usize,
  sums: usize,
  tokens: usize,
  logProbs: usize,
  vocabulary: i32,
  temperature: f32,
  greedy: i32,
  begin: i32,
  end: i32,
): void {
  const scale: f32 = 1 / temperature;
  logits = address(logits, begin * vocabulary);
  sums += <usize>(thread * ((vocabulary + BLOCK - 1) / BLOCK)) << 3;
  for (let row = begin; row < end; row++) {
    const top = largest(logits, vocabulary);
    let total: f64 = 0;
    let blocks = 0;
    for (let i = 0; i < vocabulary; blocks++) {
      const blockEnd = min(i + BLOCK, vocabulary);
      let four = splat(0);
      for (; i + 4 <= blockEnd; i += 4) {
        four = f32x4.add(
          four,
          exp4(f32x4.mul(f32x4.sub(v128.load(logits + ((<usize>i) << 2)), splat(top)), splat(scale))),
        );
      }
      let sum = <f64>sum4(four);
      for (; i < blockEnd; i++) sum += <f64>exp1((load<f32>(logits + ((<usize>i) << 2)) - top) * scale);
      store<f64>(sums + ((<usize>blocks) << 3), sum);
      total += sum;
    }
    let token = 0;
    if (greedy) {
      while (token < vocabulary && load<f32>(logits + ((<usize>token) << 2)) != top) token++;
      if (token == vocabulary) token = 0; // logits that are not numbers
    } else {
      let left = load<f64>(uniforms + ((<usize>row) << 3)) * total;
      let block = 0;
      for (; block < blocks - 1; block++) {
        const sum = load<f64>(sums + ((<usize>block) << 3));
        if (left < sum) break;
        left -= sum;
      }
      // Rounding may leave a rest after the last token: it belongs to the last one that can be drawn at all.
      const blockEnd = min((block + 1) * BLOCK, vocabulary);
      token = -1;
      for (let i = block * BLOCK; i < blockEnd; i++) {
        const probability = exp1((load<f32>(logits + ((<usize>i) << 2)) - top) * scale);
        if (probability > 0) token = i;
        left -= <f64>probability;
        if (left < 0) break;
      }
      // A last block of tokens that cannot be drawn, reached by rounding: the last before it that can.
      for (let i = block * BLOCK - 1; token < 0 && i >= 0; i--) {
        if (exp1((load<f32>(logits + ((<usize>i) << 2)) - top) * scale) > 0) token = i;
      }
      token = max(token, 0); // logits that are not numbers
    }
    store<i32>(tokens + ((<usize>row) << 2), token);
    const z = (load<f32>(logits + ((<usize>token) << 2)) - top) * scale;
    store<f32>(logProbs + ((<usize>row) << 2), <f32>(<f64>z - log(total)));
    logits += (<usize>vocabulary) << 2;
  }
}
