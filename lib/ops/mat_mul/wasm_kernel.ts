/**
 * Matrix products `C = op(A) op(B)`, cut into tiles of C. For each tile, a block of op(B) is laid out in panels of eight
 * columns, so that the innermost loop reads it from front to back, as in Goto & van de Geijn 2008, "Anatomy of
 * high-performance matrix multiplication". A is read where it lies, unless it is transposed: rows that are far apart would
 * drive each other out of the L1 cache.
 */
import { address, dots, multiplyAdd, splat, thread } from '../wasm_simd';

/** Rows and columns of C that are held in registers: twelve vectors, of the fifteen that engines have on x86. */
const ROWS = 6;
const COLUMNS = 8;
/** The part of the k products of a sum that is done before the next: six rows of A and a panel of it fit into the L1 cache. */
const DEPTH = 256;
/** Fewer rows than this are not worth the laying out of B. */
const FEW_ROWS = 4;

/**
 * Tiles `begin` to `end` of `batch` products, tile after tile through the columns, then the rows, then the batch.
 * @param a - shape (batch, m, k), or (batch, k, m) if `transposeA`
 * @param b - shape (batch, k, n), or (batch, n, k) if `transposeB`
 * @param c - receives shape (batch, m, n)
 * @param tileM - rows of C in a tile
 * @param tileN - columns of C in a tile
 * @param scratch - room for `scratchSize` floats for each thread: 48, and 256 for each column of a tile, rounded up to whole
 *   eights, and if `transposeA` for each of its rows, rounded up to whole sixes
 */
export function matMul(
  a: usize,
  b: usize,
  c: usize,
  m: i32,
  n: i32,
  k: i32,
  transposeA: i32,
  transposeB: i32,
  tileM: i32,
  tileN: i32,
  scratch: usize,
  scratchSize: i32,
  begin: i32,
  end: i32,
): void {
  const width = (tileN + COLUMNS - 1) & ~(COLUMNS - 1);
  const edge = address(scratch, thread * scratchSize);
  const panels = address(edge, ROWS * COLUMNS);
  const leftPanels = address(panels, DEPTH * width);
  const down = (m + tileM - 1) / tileM;
  const across = (n + tileN - 1) / tileN;
  for (let tile = begin; tile < end; tile++) {
    const product = tile / (down * across);
    const firstRow = ((tile / across) % down) * tileM;
    const firstColumn = (tile % across) * tileN;
    const rows = min(tileM, m - firstRow);
    const columns = min(tileN, n - firstColumn);
    const left = address(a, product * m * k);
    const right = address(b, product * k * n);
    const out = address(c, product * m * n + firstRow * n + firstColumn);
    if (rows <= FEW_ROWS && transposeB != 0 && transposeA == 0) {
      for (let row = 0; row < rows; row++) {
        dots(address(left, (firstRow + row) * k), address(right, firstColumn * k), address(out, row * n), columns, k, 1);
      }
      continue;
    }
    for (let from = 0; from < k; from += DEPTH) {
      const depth = min(DEPTH, k - from);
      if (transposeB != 0) layOutColumns(address(right, firstColumn * k + from), panels, columns, depth, k);
      else layOutRows(address(right, from * n + firstColumn), panels, columns, depth, n);
      const start = address(left, firstRow * k + from);
      if (transposeA != 0) layOutLeft(address(left, from * m + firstRow), leftPanels, rows, depth, m);
      for (let row = 0; row < rows; ) {
        let x = address(leftPanels, row * depth);
        let many = min(ROWS, rows - row);
        let skipped = 0;
        let rowStride: usize = 4;
        let stepStride: usize = ROWS * 4;
        if (transposeA == 0) {
          // The last rows are computed together with some before them; those of a very low matrix one by one.
          if (m < ROWS) many = 1;
          else skipped = max(0, firstRow + row + ROWS - m);
          x = address(start, (row - skipped) * k);
          rowStride = m < ROWS ? 0 : <usize>k << 2;
          stepStride = 4;
        }
        for (let column = 0; column < columns; column += COLUMNS) {
          const y = address(panels, column * depth);
          const z = address(out, row * n + column);
          const wide = min(COLUMNS, columns - column);
          if (many == ROWS && wide == COLUMNS) {
            block(x, y, z, depth, rowStride, stepStride, <usize>n << 2, from > 0);
            continue;
          }
          block(x, y, edge, depth, rowStride, stepStride, COLUMNS * 4, false);
          for (let i = 0; i < many; i++) {
            for (let j = 0; j < wide; j++) {
              const to = address(z, i * n + j);
              const sum = load<f32>(address(edge, (skipped + i) * COLUMNS + j));
              store<f32>(to, from > 0 ? load<f32>(to) + sum : sum);
            }
          }
        }
        row += many;
      }
    }
  }
}

/** Panels of six rows of op(A), where those of A are its columns; zeros behind the last row. */
function layOutLeft(a: usize, panels: usize, rows: i32, depth: i32, width: i32): void {
  for (let step = 0; step < depth; step++) {
    let to = address(panels, step * ROWS);
    let row = 0;
    for (; row + ROWS <= rows; row += ROWS) {
      v128.store(to, v128.load(address(a, row)));
      store<u64>(to, load<u64>(address(a, row), 16), 16);
      to = address(to, depth * ROWS);
    }
    if (row < rows) {
      for (let i = 0; i < ROWS; i++) store<f32>(address(to, i), row + i < rows ? load<f32>(address(a, row + i)) : 0);
    }
    a = address(a, width);
  }
}

/** Panels of eight columns out of a matrix whose rows lie one after the other; zeros behind the last column. */
function layOutRows(b: usize, panels: usize, columns: i32, depth: i32, width: i32): void {
  for (let column = 0; column < columns; column += COLUMNS) {
    let x = address(b, column);
    if (columns - column >= COLUMNS) {
      for (let i = 0; i < depth; i++) {
        v128.store(panels, v128.load(x));
        v128.store(panels, v128.load(x, 16), 16);
        panels += 32;
        x += <usize>width << 2;
      }
    } else {
      for (let i = 0; i < depth; i++) {
        for (let j = 0; j < COLUMNS; j++) {
          store<f32>(address(panels, j), column + j < columns ? load<f32>(address(x, j)) : 0);
        }
        panels += 32;
        x += <usize>width << 2;
      }
    }
  }
}

/** The same out of a matrix whose columns lie one after the other: four of four columns are turned round at a time. */
function layOutColumns(b: usize, panels: usize, columns: i32, depth: i32, height: i32): void {
  const bytes = <usize>height << 2;
  for (let column = 0; column < columns; column += COLUMNS) {
    for (let half = 0; half < COLUMNS; half += 4) {
      const there = columns - column - half; // columns from here on
      let to = panels + (<usize>half << 2);
      let x = address(b, (column + half) * height);
      let i = 0;
      if (there >= 4) {
        for (; i + 4 <= depth; i += 4) {
          const p = v128.load(x);
          const q = v128.load(x + bytes);
          const r = v128.load(x + 2 * bytes);
          const s = v128.load(x + 3 * bytes);
          const pq = v128.shuffle<f32>(p, q, 0, 4, 1, 5);
          const rs = v128.shuffle<f32>(r, s, 0, 4, 1, 5);
          const PQ = v128.shuffle<f32>(p, q, 2, 6, 3, 7);
          const RS = v128.shuffle<f32>(r, s, 2, 6, 3, 7);
          v128.store(to, v128.shuffle<f32>(pq, rs, 0, 1, 4, 5));
          v128.store(to, v128.shuffle<f32>(pq, rs, 2, 3, 6, 7), 32);
          v128.store(to, v128.shuffle<f32>(PQ, RS, 0, 1, 4, 5), 64);
          v128.store(to, v128.shuffle<f32>(PQ, RS, 2, 3, 6, 7), 96);
          x += 16;
          to += 128;
        }
      }
      for (; i < depth; i++) {
        for (let j = 0; j < 4; j++) {
          store<f32>(address(to, j), j < there ? load<f32>(x + <usize>j * bytes) : 0);
        }
        x += 4;
        to += 32;
      }
    }
    panels += <usize>(COLUMNS * depth) << 2;
  }
}

/** Six rows of A times a panel: 6 × 8 sums of `depth` products, added to what is in C if `more`. The strides are bytes. */
function block(
  a: usize,
  panel: usize,
  c: usize,
  depth: i32,
  rowStride: usize,
  stepStride: usize,
  cStride: usize,
  more: bool,
): void {
  // C is read before the sums, not after them: V8 keeps them in registers then.
  let c00 = more ? v128.load(c) : splat(0);
  let c01 = more ? v128.load(c, 16) : splat(0);
  c += cStride;
  let c10 = more ? v128.load(c) : splat(0);
  let c11 = more ? v128.load(c, 16) : splat(0);
  c += cStride;
  let c20 = more ? v128.load(c) : splat(0);
  let c21 = more ? v128.load(c, 16) : splat(0);
  c += cStride;
  let c30 = more ? v128.load(c) : splat(0);
  let c31 = more ? v128.load(c, 16) : splat(0);
  c += cStride;
  let c40 = more ? v128.load(c) : splat(0);
  let c41 = more ? v128.load(c, 16) : splat(0);
  c += cStride;
  let c50 = more ? v128.load(c) : splat(0);
  let c51 = more ? v128.load(c, 16) : splat(0);
  c -= 5 * cStride;
  const end = panel + (<usize>depth << 5);
  while (panel < end) {
    const y0 = v128.load(panel);
    const y1 = v128.load(panel, 16);
    let at = a;
    let x = v128.load32_splat(at);
    c00 = multiplyAdd(x, y0, c00);
    c01 = multiplyAdd(x, y1, c01);
    at += rowStride;
    x = v128.load32_splat(at);
    c10 = multiplyAdd(x, y0, c10);
    c11 = multiplyAdd(x, y1, c11);
    at += rowStride;
    x = v128.load32_splat(at);
    c20 = multiplyAdd(x, y0, c20);
    c21 = multiplyAdd(x, y1, c21);
    at += rowStride;
    x = v128.load32_splat(at);
    c30 = multiplyAdd(x, y0, c30);
    c31 = multiplyAdd(x, y1, c31);
    at += rowStride;
    x = v128.load32_splat(at);
    c40 = multiplyAdd(x, y0, c40);
    c41 = multiplyAdd(x, y1, c41);
    at += rowStride;
    x = v128.load32_splat(at);
    c50 = multiplyAdd(x, y0, c50);
    c51 = multiplyAdd(x, y1, c51);
    a += stepStride;
    panel += 32;
  }
  v128.store(c, c00);
  v128.store(c, c01, 16);
  c += cStride;
  v128.store(c, c10);
  v128.store(c, c11, 16);
  c += cStride;
  v128.store(c, c20);
  v128.store(c, c21, 16);
  c += cStride;
  v128.store(c, c30);
  v128.store(c, c31, 16);
  c += cStride;
  v128.store(c, c40);
  v128.store(c, c41, 16);
  c += cStride;
  v128.store(c, c50);
  v128.store(c, c51, 16);
}
