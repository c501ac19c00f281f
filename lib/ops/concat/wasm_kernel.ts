/** Blocks laid side by side. */
import { address, copy } from '../wasm_simd';

/** Blocks of `width` floats, from every `step`-th float of x to float `first` of y and every `stride`-th from there. */
export function placeBlocks(
  x: usize,
  y: usize,
  first: i32,
  width: i32,
  stride: i32,
  step: i32,
  begin: i32,
  end: i32,
): void {
  const bytes = <usize>width << 2;
  x = address(x, begin * step);
  y = address(y, first + begin * stride);
  for (let i = begin; i < end; i++) {
    copy(y, x, bytes);
    x += <usize>step << 2;
    y += <usize>stride << 2;
  }
}
