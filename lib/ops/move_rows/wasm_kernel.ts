/** Rows copied whole: `y[i] = x[index[i]]`. */
import { address, copy } from '../wasm_simd';

/** @param limit - the number of rows of x: an index of that many means a row of zeros */
export function gatherRows(x: usize, index: usize, y: usize, width: i32, limit: i32, begin: i32, end: i32): void {
  const bytes = <usize>width << 2;
  y = address(y, begin * width);
  for (let i = begin; i < end; i++) {
    const row = load<i32>(address(index, i));
    if (row == limit) memory.fill(y, 0, bytes);
    else copy(y, x + <usize>row * bytes, bytes);
    y += bytes;
  }
}
