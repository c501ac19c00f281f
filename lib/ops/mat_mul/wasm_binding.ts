import * as tf from '@tensorflow/tfjs';
import type { WasmKernel } from '../on_wasm.ts';
import { lastTwo, sizeOf } from '../shapes.ts';
import { pieces } from '../thread_pool.ts';
import { registered, replace } from '../wasm_backend.ts';

/** Multiply-adds of one product below which a call into BLAS costs more than it saves. */
const SMALLEST_FOR_BLAS = 2 ** 12;

/**
 * How products are cut into tiles. No tile is higher or wider than this; then tiles are halved until there are `enough`, or
 * each would have fewer than so many multiply-adds. What a tile costs besides is the laying out of its columns of B in our
 * own kernel, and in BLAS that of its rows of A, too: so it is rows that are halved as long as there are more than `rows`,
 * or more than a part of the columns. Tiles that are `low` and `narrow` stay as they are.
 */
const CUT = {
  byWasm: {
    highest: 768,
    widest: 128,
    enough: 12,
    smallest: 2 ** 18,
    rows: 384,
    part: 1,
    low: 48,
    narrow: 64,
    unit: 6,
  },
  byBlas: {
    ...{ highest: 2 ** 13, widest: 2 ** 13, enough: 8, smallest: 2 ** 20 },
    ...{ rows: 512, part: 0.25, low: 64, narrow: 256, unit: 16 },
  },
};

/** `tf.matMul`: the backend's own kernel has one thread, and is slow where an operand is transposed. */
export const matMulOnWasm: WasmKernel = {
  kernelName: tf.BatchMatMul,
  register({ matMul, output, scratch, freeScratch, threads }) {
    const original = registered(tf.BatchMatMul);
    replace(tf.BatchMatMul, (call) => {
      const { a, b } = call.inputs;
      const { transposeA, transposeB } = call.attrs as { transposeA: boolean; transposeB: boolean };
      const [outer, outerB] = [a, b].map(({ shape }) => shape.slice(0, -2));
      const [m, k] = lastTwo(a.shape, transposeA);
      const n = lastTwo(b.shape, transposeB)[1];
      if (a.dtype !== 'float32' || b.dtype !== 'float32' || outer.join() !== outerB.join() || k === 0) {
        return original(call);
      }
      const byBlas = m * n * k >= SMALLEST_FOR_BLAS || !matMul.byWasm ? matMul.byBlas : undefined;
      const c = output([...outer, m, n]);
      if (sizeOf(c.shape) === 0) return c;
      const [tileM, tileN] = tileOf(m, n, k, byBlas ? CUT.byBlas : CUT.byWasm);
      const tiles = sizeOf(outer) * Math.ceil(m / tileM) * Math.ceil(n / tileN);
      const laidOut = 8 * Math.ceil(tileN / 8) + (transposeA ? 6 * Math.ceil(tileM / 6) : 0);
      const scratchSize = byBlas ? 0 : 256 * laidOut + 48;
      (byBlas ?? matMul.byWasm)!(
        {
          ...{ a, b, c, m, n, k, tileM, tileN, scratchSize },
          scratch: scratch(threads * scratchSize),
          transposeA: transposeA ? 1 : 0,
          transposeB: transposeB ? 1 : 0,
        },
        pieces(tiles, tileM * tileN * k),
      );
      freeScratch();
      return c;
    });
  },
};

/** Rows and columns of a tile, by the shapes alone. */
function tileOf(m: number, n: number, k: number, cut: (typeof CUT)['byWasm']): [number, number] {
  let [rows, columns] = [m, n];
  const half = (size: number, unit: number) => unit * Math.ceil(size / 2 / unit);
  while (rows > cut.highest) rows = half(rows, cut.unit);
  while (columns > cut.widest) columns = half(columns, 8);
  const enough = Math.min(cut.enough, (m * n * k) / cut.smallest);
  while (Math.ceil(m / rows) * Math.ceil(n / columns) < enough) {
    if (rows > cut.low && (rows > cut.rows || rows > cut.part * columns)) rows = half(rows, cut.unit);
    else if (columns > cut.narrow) columns = half(columns, 8);
    else if (rows > cut.low) rows = half(rows, cut.unit);
    else break;
  }
  return [rows, columns];
}
