/** SwiGLU gate: `y = g · σ(g) · u` (Shazeer 2020), and its gradient. */
import { exp1, exp4, splat } from '../wasm_simd';

export function swiGlu(gate: usize, up: usize, y: usize, begin: i32, end: i32): void {
  const one = splat(1);
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    const at = (<usize>i) << 2;
    const g = v128.load(gate + at);
    const denominator = f32x4.add(one, exp4(f32x4.pmin(f32x4.neg(g), splat(88))));
    v128.store(y + at, f32x4.mul(f32x4.div(g, denominator), v128.load(up + at)));
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    const g = load<f32>(gate + at);
    store<f32>(y + at, (g / (1 + exp1(min<f32>(-g, 88)))) * load<f32>(up + at));
  }
}

/** `du = dy · g σ(g)`, `dg = dy · u · (σ + g σ (1 − σ))`. */
export function swiGluGrad(
  dy: usize,
  gate: usize,
  up: usize,
  dGate: usize,
  dUp: usize,
  begin: i32,
  end: i32,
): void {
  const one = splat(1);
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    const at = (<usize>i) << 2;
    const g = v128.load(gate + at);
    const d = v128.load(dy + at);
    const sigma = f32x4.div(one, f32x4.add(one, exp4(f32x4.pmin(f32x4.neg(g), splat(88)))));
    const silu = f32x4.mul(g, sigma);
    const slope = f32x4.add(sigma, f32x4.mul(silu, f32x4.sub(one, sigma)));
    v128.store(dUp + at, f32x4.mul(d, silu));
    v128.store(dGate + at, f32x4.mul(f32x4.mul(d, v128.load(up + at)), slope));
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    const g = load<f32>(gate + at);
    const d = load<f32>(dy + at);
    const sigma: f32 = 1 / (1 + exp1(min<f32>(-g, 88)));
    const silu = g * sigma;
    store<f32>(dUp + at, d * silu);
    store<f32>(dGate + at, d * load<f32>(up + at) * (sigma + silu * (1 - sigma)));
  }
}
