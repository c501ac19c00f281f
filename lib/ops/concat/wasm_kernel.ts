/** Blocks laid side by side. */
import { copy } from '../wasm_simd';

/** One part of a concatenation: `count` blocks of `width` floats, from float `begin` of y to every `stride`-th from there. */
export function placeBlocks(x: usize, y: usize, begin: i32, count: i32, width: i32, stride: i32): void {
  const bytes = <usize>width << 2;
  y += <usize>begin << 2;
  for (let i = 0; i < count; i++) {
    copy(y, x, bytes);
    x += bytes;
    y += <usize>stride << 2;
  }
}
