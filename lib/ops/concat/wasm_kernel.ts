/** Blocks laid side by side. */
import { address, copy } from '../wasm_simd';

/** One part of a concatenation: blocks of `width` floats, which go to float `first` of y and to every `stride`-th from there. */
export function placeBlocks(
  x: usize,
  y: usize,
  first: i32,
  width: i32,
  stride: i32,
  begin: i32,
  end: i32,
): void {
  const bytes = <usize>width << 2;
  x = address(x, begin * width);
  y = address(y, first + begin * stride);
  for (let i = begin; i < end; i++) {
    copy(y, x, bytes);
    x += bytes;
    y += <usize>stride << 2;
  }
}
