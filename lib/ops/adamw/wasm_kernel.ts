/** AdamW (Loshchilov & Hutter 2019, algorithm 2, as PyTorch computes it), in one pass over parameter and moments. */
import { splat } from '../wasm_simd';

/**
 * With `g = gradient · gradientScale`: `m' = β₁ m + (1−β₁) g`, `v' = β₂ v + (1−β₂) g²`,
 * `p' = p · decay − stepSize · m' / (√v' / rootOfCorrection + ε)`.
 */
export function adamW(
  param: usize,
  gradient: usize,
  m: usize,
  v: usize,
  nextParam: usize,
  nextM: usize,
  nextV: usize,
  gradientScale: f32,
  beta1: f32,
  rest1: f32,
  beta2: f32,
  rest2: f32,
  decay: f32,
  stepSize: f32,
  rootOfCorrection: f32,
  epsilon: f32,
  begin: i32,
  end: i32,
): void {
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    const at = (<usize>i) << 2;
    const g = f32x4.mul(v128.load(gradient + at), splat(gradientScale));
    const m4 = f32x4.add(f32x4.mul(v128.load(m + at), splat(beta1)), f32x4.mul(g, splat(rest1)));
    const v4 = f32x4.add(f32x4.mul(v128.load(v + at), splat(beta2)), f32x4.mul(f32x4.mul(g, g), splat(rest2)));
    const denominator = f32x4.add(f32x4.div(f32x4.sqrt(v4), splat(rootOfCorrection)), splat(epsilon));
    const change = f32x4.mul(f32x4.div(m4, denominator), splat(stepSize));
    v128.store(nextParam + at, f32x4.sub(f32x4.mul(v128.load(param + at), splat(decay)), change));
    v128.store(nextM + at, m4);
    v128.store(nextV + at, v4);
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    const g = load<f32>(gradient + at) * gradientScale;
    const m1 = load<f32>(m + at) * beta1 + g * rest1;
    const v1 = load<f32>(v + at) * beta2 + g * g * rest2;
    const change = (m1 / (sqrt<f32>(v1) / rootOfCorrection + epsilon)) * stepSize;
    store<f32>(nextParam + at, load<f32>(param + at) * decay - change);
    store<f32>(nextM + at, m1);
    store<f32>(nextV + at, v1);
  }
}
