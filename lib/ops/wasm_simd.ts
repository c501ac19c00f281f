/**
 * What the kernels share: four floats at a time. Addresses are bytes; counts are floats. Each kernel computes the items
 * (rows, queries, numbers, …) from `begin` to before `end` of a whole that several threads may share.
 */

/** The natural logarithm, JavaScript's: a table of its own would lie at an address where tensors are. */
// @ts-ignore: decorators of functions are AssemblyScript's
@external("env", "log")
export declare function log(x: f64): f64;

/** The number of the thread that runs this, from 0: scratch memory is divided among them. */
// @ts-ignore: decorators of functions are AssemblyScript's
@external("env", "thread")
export declare const thread: i32;

/** The address of a float, by its number. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function address(base: usize, index: i32): usize {
  return base + ((<usize>index) << 2);
}

/** `a · b + c`, rounded once where the engine has an instruction for it (relaxed SIMD), else twice. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function multiplyAdd(a: v128, b: v128, c: v128): v128 {
  // @ts-ignore: known when it is compiled
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** Four copies of a number. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function splat(x: f32): v128 {
  return f32x4.splat(x);
}

/**
 * eˣ of four numbers up to 88, to two units in the last place: x = n·ln 2 + r with |r| ≤ ln 2 / 2, and eˣ = 2ⁿ·eʳ, where eʳ
 * is a polynomial of degree 7 (the coefficients of Cephes' `expf`). Exactly 0 below −87.3, where float32 ends.
 */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function exp4(x: v128): v128 {
  const below = f32x4.lt(x, splat(-87.33654)); // not true of NaN, which stays NaN
  // Beside 1.5 · 2²³ no digit after the point is left: the sum's last bits are n.
  const shifted = f32x4.add(f32x4.mul(x, splat(1.44269504088896341)), splat(12582912));
  const n = f32x4.sub(shifted, splat(12582912));
  const r = f32x4.sub(f32x4.sub(x, f32x4.mul(n, splat(0.693359375))), f32x4.mul(n, splat(-2.12194440e-4)));
  let p = splat(1.9875691500e-4);
  p = multiplyAdd(p, r, splat(1.3981999507e-3));
  p = multiplyAdd(p, r, splat(8.3334519073e-3));
  p = multiplyAdd(p, r, splat(4.1665795894e-2));
  p = multiplyAdd(p, r, splat(1.6666665459e-1));
  p = multiplyAdd(p, r, splat(5.0000001201e-1));
  p = f32x4.add(multiplyAdd(f32x4.mul(p, r), r, r), splat(1));
  // 2ⁿ is added to the exponent's bits, which start at bit 23.
  return v128.andnot(i32x4.add(p, i32x4.shl(shifted, 23)), below);
}

/** eˣ of one number, the same to the last bit. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function exp1(x: f32): f32 {
  return f32x4.extract_lane(exp4(splat(x)), 0);
}

/** The sum of the four. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function sum4(x: v128): f32 {
  return (
    f32x4.extract_lane(x, 0) + f32x4.extract_lane(x, 1) + (f32x4.extract_lane(x, 2) + f32x4.extract_lane(x, 3))
  );
}

/** The largest of the four. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function max4(x: v128): f32 {
  return max(
    max(f32x4.extract_lane(x, 0), f32x4.extract_lane(x, 1)),
    max(f32x4.extract_lane(x, 2), f32x4.extract_lane(x, 3)),
  );
}

/** Σ aᵢ bᵢ over `count` floats. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function dot(a: usize, b: usize, count: i32): f32 {
  let sum = splat(0);
  let i = 0;
  for (; i + 4 <= count; i += 4) {
    sum = multiplyAdd(v128.load(address(a, i)), v128.load(address(b, i)), sum);
  }
  let total = sum4(sum);
  for (; i < count; i++) total += load<f32>(a + (<usize>i << 2)) * load<f32>(b + (<usize>i << 2));
  return total;
}

/** `outⱼ = scale · (q · kⱼ)` for `count` keys: four at a time. */
export function dots(q: usize, k: usize, out: usize, count: i32, dim: i32, scale: f32): void {
  const bytes = <usize>dim << 2;
  let j = 0;
  if ((dim & 3) == 0) {
    for (; j + 4 <= count; j += 4) {
      let a = splat(0);
      let b = splat(0);
      let c = splat(0);
      let d = splat(0);
      for (let at: usize = 0; at < bytes; at += 16) {
        const x = v128.load(q + at);
        a = multiplyAdd(x, v128.load(k + at), a);
        b = multiplyAdd(x, v128.load(k + bytes + at), b);
        c = multiplyAdd(x, v128.load(k + 2 * bytes + at), c);
        d = multiplyAdd(x, v128.load(k + 3 * bytes + at), d);
      }
      // The four sums of four, side by side: halves are added until one number of each is left.
      const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
      const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
      const sums = f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
      v128.store(out + (<usize>j << 2), f32x4.mul(sums, splat(scale)));
      k += 4 * bytes;
    }
  }
  for (; j < count; j++) {
    store<f32>(out + (<usize>j << 2), scale * dot(q, k, dim));
    k += bytes;
  }
}

/** The largest of `count` floats. */
export function largest(x: usize, count: i32): f32 {
  let top = splat(-Infinity);
  let i = 0;
  for (; i + 4 <= count; i += 4) top = f32x4.pmax(top, v128.load(x + ((<usize>i) << 2)));
  let result = max4(top);
  for (; i < count; i++) result = max(result, load<f32>(x + ((<usize>i) << 2)));
  return result;
}

/** Copies `bytes` bytes, a multiple of 4. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
export function copy(to: usize, from: usize, bytes: usize): void {
  if (bytes > 1024) {
    memory.copy(to, from, bytes);
    return;
  }
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(to + i, v128.load(from + i));
  for (; i < bytes; i += 4) store<u32>(to + i, load<u32>(from + i));
}
