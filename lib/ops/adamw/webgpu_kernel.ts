/**
 * AdamW (Loshchilov & Hutter 2019, algorithm 2, as PyTorch computes it), a thread a number. Parameters and moments stay where
 * they are, so that all that reads them finds its bind group again.
 */
import { wgsl } from '../wgsl.ts';

/**
 * With `g = gradient · gradientScale`: `m' = β₁ m + (1−β₁) g`, `v' = β₂ v + (1−β₂) g²`,
 * `p' = p · decay − stepSize · m' / (√v' / rootOfCorrection + ε)`.
 */
export const adamW = wgsl({
  name: 'adamW',
  inputs: { gradient: 'f32' },
  outputs: { param: 'f32', m: 'f32', v: 'f32' },
  numbers: {
    count: 'u32',
    ...({ gradientScale: 'f32', beta1: 'f32', rest1: 'f32', beta2: 'f32', rest2: 'f32' } as const),
    ...({ decay: 'f32', stepSize: 'f32', rootOfCorrection: 'f32', epsilon: 'f32' } as const),
  },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i >= u.count) { return; }
  let g = gradient[i] * u.gradientScale;
  let m1 = m[i] * u.beta1 + g * u.rest1;
  let v1 = v[i] * u.beta2 + g * g * u.rest2;
  let change = m1 / (sqrt(v1) / u.rootOfCorrection + u.epsilon) * u.stepSize;
  param[i] = param[i] * u.decay - change;
  m[i] = m1;
  v[i] = v1;
}`,
});
