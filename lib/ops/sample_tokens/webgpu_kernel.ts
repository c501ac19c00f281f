/** Inverse of the cumulative distribution: the first token at which it exceeds the row's random number. A workgroup a row. */
import { wgsl } from '../wgsl.ts';

/**
 * A thread adds up a stretch of neighbouring tokens, the first thread finds the stretch, whose thread then finds the token.
 * `greedy` of 1 takes the most likely token, the first of several; `logProbs` receives its log-probability.
 */
export const sampleTokens = wgsl({
  name: 'sampleTokens',
  inputs: { logits: 'f32' },
  outputs: { tokens: 'i32', logProbs: 'f32' },
  numbers: { vocabulary: 'u32', temperature: 'f32', greedy: 'u32' },
  data: { uniforms: 'f32' },
  threads: 256,
  source: `
var<workgroup> sums: array<f32, THREADS>;
// The stretch that holds the token, and what is left of the random number there.
var<workgroup> stretch: u32;
var<workgroup> rest: f32;
var<workgroup> chosen: u32;
fn kernel(row: u32, thread: u32) {
  let base = row * u.vocabulary;
  let length = (u.vocabulary + THREADS - 1) / THREADS;
  let begin = min(thread * length, u.vocabulary);
  let end = min(begin + length, u.vocabulary);
  // Of logits that are not numbers, or infinite, token 0; asked by their bits, since comparisons and exp need not heed them.
  var strange = 0.0;
  var highest = -3e38;
  for (var i = begin; i < end; i++) {
    let bits = bitcast<u32>(logits[base + i]);
    if ((bits & 0x7fffffff) > 0x7f800000 || bits == 0x7f800000) { strange = 1; }
    highest = max(highest, logits[base + i]);
  }
  let fine = sumOfGroup(strange, thread) == 0;
  let top = largestOfGroup(highest, thread);
  var sum = 0.0;
  for (var i = begin; i < end; i++) { sum += exp((logits[base + i] - top) / u.temperature); }
  sums[thread] = sum;
  let total = sumOfGroup(sum, thread);
  if (thread == 0) {
    chosen = 0;
    stretch = THREADS;
    if (fine && u.greedy == 1) {
      while (chosen < u.vocabulary - 1 && logits[base + chosen] != top) { chosen++; }
    } else if (fine) {
      var left = uniforms[row] * total;
      // Rounding may leave a rest after the last token: it belongs to the last one that can be drawn at all.
      for (var s = 0u; s < THREADS; s++) {
        if (sums[s] > 0) {
          stretch = s;
          rest = left;
        }
        left -= sums[s];
        if (left < 0) { break; }
      }
    }
  }
  workgroupBarrier();
  if (thread == stretch) {
    var left = rest;
    for (var i = begin; i < end; i++) {
      let probability = exp((logits[base + i] - top) / u.temperature);
      if (probability > 0) { chosen = i; }
      left -= probability;
      if (left < 0) { break; }
    }
  }
  workgroupBarrier();
  if (thread == 0) {
    tokens[row] = i32(chosen);
    if (fine) { logProbs[row] = (logits[base + chosen] - top) / u.temperature - log(total); }
    else { logProbs[row] = bitcast<f32>(0x7fc00000 | row); } // not a number
  }
}`,
});
