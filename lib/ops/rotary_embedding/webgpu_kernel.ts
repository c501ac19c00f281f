/** Rotary position embedding (Su et al. 2021, eq. 34): a thread turns a pair (xᵢ, xᵢ₊D/2) by its angle. */
import { wgsl } from '../wgsl.ts';

/** `yᵢ = xᵢ cosᵢ − xᵢ₊D/2 sinᵢ`, `yᵢ₊D/2 = xᵢ₊D/2 cosᵢ + xᵢ sinᵢ`; `halfDim` is D / 2; a `turn` of −1 turns back. */
export const rotaryEmbedding = wgsl({
  name: 'rotaryEmbedding',
  inputs: { x: 'f32', cosines: 'f32', sines: 'f32' },
  outputs: { y: 'f32' },
  numbers: { pairs: 'u32', heads: 'u32', halfDim: 'u32', turn: 'f32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let pair = group * THREADS + thread;
  if (pair >= u.pairs) { return; }
  let head = pair / u.halfDim;
  let i = pair % u.halfDim;
  let at = 2 * head * u.halfDim + i;
  let angle = head / u.heads * u.halfDim + i;
  let c = cosines[angle];
  let s = sines[angle] * u.turn;
  let a = x[at];
  let b = x[at + u.halfDim];
  y[at] = a * c - b * s;
  y[at + u.halfDim] = b * c + a * s;
}`,
});
