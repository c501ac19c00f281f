/** Rows copied whole: `y[i] = x[index[i]]`. */
import { copy } from '../wasm_simd';

/** @param limit - the number of rows of x: an index of that many means a row of zeros */
export function gatherRows(x: usize, index: usize, y: usize, count: i32, width: i32, limit: i32): void {
  const bytes = <usize>width << 2;
  for (let i = 0; i < count; i++) {
    const row = load<i32>(index + (<usize>i << 2));
    if (row == limit) memory.fill(y, 0, bytes);
    else copy(y, x + <usize>row * bytes, bytes);
    y += bytes;
  }
}
