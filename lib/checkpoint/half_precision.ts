/** Conversions between float32 and the two 16-bit formats that checkpoints are stored in, as raw bits in a Uint16Array. */
export type FloatDtype = 'F32' | 'F16' | 'BF16';

/** bfloat16 → float32, exact. */
export function bf16ToFloat32(stored: Uint16Array): Float32Array {
  // bfloat16 is the upper half of a float32.
  const bits = new Uint32Array(stored.length);
  for (let i = 0; i < stored.length; i++) bits[i] = stored[i] << 16;
  return new Float32Array(bits.buffer);
}

/** Every value a half can have, by its 16 bits; filled when first needed. */
let f16Values: Float32Array | undefined;

/** IEEE half → float32, exact. */
export function f16ToFloat32(stored: Uint16Array): Float32Array {
  f16Values ??= Float32Array.from({ length: 65_536 }, (_, half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 31;
    const mantissa = half & 1023;
    if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
    return sign * (exponent === 0 ? mantissa * 2 ** -24 : (1 + mantissa / 1024) * 2 ** (exponent - 15));
  });
  const values = new Float32Array(stored.length);
  for (let i = 0; i < stored.length; i++) values[i] = f16Values[stored[i]];
  return values;
}

/** float32 → bfloat16, to nearest, ties to even: adds half of the last kept bit, or just less if that bit is 0. */
export function float32ToBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const stored = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const nan = (bits[i] & 0x7fffffff) > 0x7f800000;
    stored[i] = nan ? (bits[i] >>> 16) | 0x40 : (bits[i] + 0x7fff + ((bits[i] >>> 16) & 1)) >>> 16;
  }
  return stored;
}

/** float32 → IEEE half, to nearest, ties to even; what is too large becomes infinity. */
export function float32ToF16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const stored = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const magnitude = bits[i] & 0x7fffffff;
    let half: number;
    if (magnitude > 0x7f800000) half = 0x7e00;
    else if (magnitude >= 0x477ff000)
      half = 0x7c00; // 65,520 and more round to infinity
    else if (magnitude >= 0x38800000) {
      const rebiased = magnitude - 0x38000000; // exponent bias 127 → 15
      half = (rebiased + 0xfff + ((rebiased >>> 13) & 1)) >>> 13;
    } else {
      const steps = Math.abs(values[i]) * 2 ** 24; // subnormal halves are multiples of 2^-24
      half = Math.round(steps);
      if (half - steps === 0.5 && half % 2 === 1) half--;
    }
    stored[i] = ((bits[i] >>> 16) & 0x8000) | half;
  }
  return stored;
}

/** Values as they are read back after having been stored in a dtype. */
export function rounded(values: Float32Array, dtype: FloatDtype): Float32Array {
  if (dtype === 'F32') return values;
  return dtype === 'BF16' ? bf16ToFloat32(float32ToBf16(values)) : f16ToFloat32(float32ToF16(values));
}
