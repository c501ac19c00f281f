import * as tf from '@tensorflow/tfjs';
import { replaceOnWebGpu, type WebGpu } from '../on_webgpu.ts';
import { lastTwo, sizeOf } from '../shapes.ts';
import { SMALL_TILE, splitProduct, TILE, tiledProduct } from './webgpu_kernel.ts';

/** So many tiles keep a large GPU busy: where there are fewer, threads share the steps of k. */
const ENOUGH_TILES = 256;

const SIZES = { tiled: TILE, split: SMALL_TILE };
const KERNELS = [false, true].map((a) =>
  [false, true].map((b) => ({ tiled: tiledProduct({ a, b }), split: splitProduct({ a, b }) })),
);

/** The two kernels, by name. */
export type Product = keyof typeof SIZES;

type Transposes = { transposeA: boolean; transposeB: boolean };

/** `tf.matMul`: the backend's own kernel takes its time for each call, and is made for products of many tiles. */
export const matMulOnWebGpu = replaceOnWebGpu(tf.BatchMatMul, ({ a, b }, webgpu, attributes) => {
  const transposes = attributes as Transposes;
  const [outer, outerB] = [a, b].map(({ shape }) => shape.slice(0, -2));
  const [m, k] = lastTwo(a.shape, transposes.transposeA);
  const n = lastTwo(b.shape, transposes.transposeB)[1];
  if (a.dtype !== 'float32' || b.dtype !== 'float32' || outer.join() !== outerB.join() || k === 0) return undefined;
  const tiles = sizeOf(outer) * Math.ceil(m / TILE) * Math.ceil(n / TILE);
  return productBy(tiles >= ENOUGH_TILES ? 'tiled' : 'split', { a, b }, webgpu, transposes);
});

/** The products of two batches of the same shape, by one of the kernels. */
export function productBy(
  kernel: Product,
  { a, b }: Record<'a' | 'b', tf.TensorInfo>,
  { run, output }: WebGpu,
  { transposeA, transposeB }: Transposes,
): tf.TensorInfo {
  const outer = a.shape.slice(0, -2);
  const [m, k] = lastTwo(a.shape, transposeA);
  const n = lastTwo(b.shape, transposeB)[1];
  const c = output([...outer, m, n]);
  const across = Math.ceil(n / SIZES[kernel]);
  const tiles = across * Math.ceil(m / SIZES[kernel]);
  const numbers = { m, n, k, across, tiles };
  run(KERNELS[Number(transposeA)][Number(transposeB)][kernel], { a, b, c, ...numbers }, sizeOf(outer) * tiles);
  return c;
}
