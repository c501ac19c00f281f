/** Rows copied whole: `y[i] = x[index[i]]`, and blocks laid side by side. */

/** Copies `bytes` bytes, a multiple of 4. */
// @ts-ignore: decorators of functions are AssemblyScript's
@inline
function copy(to: usize, from: usize, bytes: usize): void {
  if (bytes > 1024) {
    memory.copy(to, from, bytes);
    return;
  }
  let i: usize = 0;
  for (; i + 16 <= bytes; i += 16) v128.store(to + i, v128.load(from + i));
  for (; i < bytes; i += 4) store<u32>(to + i, load<u32>(from + i));
}

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

/** One part of a concatenation: `count` blocks of `width` floats, each to the next multiple of `stride` floats. */
export function placeBlocks(x: usize, y: usize, count: i32, width: i32, stride: i32): void {
  const bytes = <usize>width << 2;
  for (let i = 0; i < count; i++) {
    copy(y, x, bytes);
    x += bytes;
    y += <usize>stride << 2;
  }
}
