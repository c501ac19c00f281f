/** Blocks laid side by side. */
import { copy } from '../wasm_simd';

/** One part of a concatenation: `count` blocks of `width` floats, each to the next multiple of `stride` floats. */
export function placeBlocks(x: usize, y: usize, count: i32, width: i32, stride: i32): void {
  const bytes = <usize>width << 2;
  for (let i = 0; i < count; i++) {
    copy(y, x, bytes);
    x += bytes;
    y += <usize>stride << 2;
  }
}
