import * as tf from '@tensorflow/tfjs';
import { replaceOnWebGpu } from '../on_webgpu.ts';
import { lastTwo, sizeOf } from '../shapes.ts';
import { SMALL_TILE, splitProduct, TILE, tiledProduct } from './webgpu_kernel.ts';

/** So many tiles keep a large GPU busy: where there are fewer, threads share the steps of k. */
const ENOUGH_TILES = 256;

const LAYOUTS = [false, true].map((a) =>
  [false, true].map((b) => ({ tiled: tiledProduct({ a, b }), split: splitProduct({ a, b }) })),
);

/** `tf.matMul`: the backend's own kernel takes its time for each call, and is made for products of many tiles. */
export const matMulOnWebGpu = replaceOnWebGpu(tf.BatchMatMul, ({ a, b }, { run, output }, attributes) => {
  const { transposeA, transposeB } = attributes as { transposeA: boolean; transposeB: boolean };
  const [outer, outerB] = [a, b].map(({ shape }) => shape.slice(0, -2));
  const [m, k] = lastTwo(a.shape, transposeA);
  const n = lastTwo(b.shape, transposeB)[1];
  if (a.dtype !== 'float32' || b.dtype !== 'float32' || outer.join() !== outerB.join() || k === 0) return undefined;
  const c = output([...outer, m, n]);
  const { tiled, split } = LAYOUTS[Number(transposeA)][Number(transposeB)];
  const batches = sizeOf(outer);
  const tilesOf = (size: number) => ({ across: Math.ceil(n / size), tiles: Math.ceil(n / size) * Math.ceil(m / size) });
  const [large, small] = [tilesOf(TILE), tilesOf(SMALL_TILE)];
  if (batches * large.tiles >= ENOUGH_TILES) run(tiled, { a, b, c, m, n, k, ...large }, batches * large.tiles);
  else run(split, { a, b, c, m, n, k, ...small }, batches * small.tiles);
  return c;
});
