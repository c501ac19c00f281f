/** Rotary position embedding (Su et al. 2021, eq. 34): turns the pair (xᵢ, xᵢ₊D/2) by its angle. */
import { address, splat } from '../wasm_simd';

/**
 * `yᵢ = xᵢ cosᵢ − xᵢ₊D/2 sinᵢ`, `yᵢ₊D/2 = xᵢ₊D/2 cosᵢ + xᵢ sinᵢ` for each head of each token.
 * @param half - D / 2
 * @param sign - −1 turns back, which is the gradient
 */
export function rotaryEmbedding(
  x: usize,
  cos: usize,
  sin: usize,
  y: usize,
  heads: i32,
  half: i32,
  sign: f32,
  begin: i32,
  end: i32,
): void {
  x = address(x, begin * heads * 2 * half);
  y = address(y, begin * heads * 2 * half);
  cos = address(cos, begin * half);
  sin = address(sin, begin * half);
  const bytes = (<usize>half) << 2;
  const signs = splat(sign);
  for (let token = begin; token < end; token++) {
    for (let head = 0; head < heads; head++) {
      let i = 0;
      for (; i + 4 <= half; i += 4) {
        const at = (<usize>i) << 2;
        const c = v128.load(cos + at);
        const s = f32x4.mul(v128.load(sin + at), signs);
        const a = v128.load(x + at);
        const b = v128.load(x + bytes + at);
        v128.store(y + at, f32x4.sub(f32x4.mul(a, c), f32x4.mul(b, s)));
        v128.store(y + bytes + at, f32x4.add(f32x4.mul(b, c), f32x4.mul(a, s)));
      }
      for (; i < half; i++) {
        const at = (<usize>i) << 2;
        const c = load<f32>(cos + at);
        const s = load<f32>(sin + at) * sign;
        const a = load<f32>(x + at);
        const b = load<f32>(x + bytes + at);
        store<f32>(y + at, a * c - b * s);
        store<f32>(y + bytes + at, b * c + a * s);
      }
      x += 2 * bytes;
      y += 2 * bytes;
    }
    cos += bytes;
    sin += bytes;
  }
}
