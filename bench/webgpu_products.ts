/**
 * Speed of matrix products on a GPU, by each of our kernels and by the backend's own, for shapes that training and sampling
 * have: what decides between them in lib/ops/mat_mul/webgpu_binding.ts.
 *
 *   node --import tsx bench/webgpu_products.ts
 */
import * as tf from '@tensorflow/tfjs';
import { initBackend } from '../lib/backend/index.ts';
import { runMain } from '../lib/cli/main.ts';
import { type Product, productBy } from '../lib/ops/mat_mul/webgpu_binding.ts';
import { createWebGpu } from '../lib/ops/on_webgpu.ts';
import type { WebGpuBackend } from '../lib/ops/webgpu_backend.ts';

/** m, n, k and whether A and B are transposed: a token's projection, many tokens', their gradients, a large square. */
const SHAPES: [m: number, n: number, k: number, a: boolean, b: boolean][] = [
  [16, 576, 576, false, true],
  [128, 1536, 576, false, true],
  [16, 49_152, 576, false, true],
  [1024, 576, 576, false, true],
  [8192, 1536, 576, false, true],
  [8192, 576, 1536, false, false],
  [576, 1536, 8192, true, false],
  [4096, 4096, 4096, false, true],
];

/** Operations of the calls that are timed together: some milliseconds on a fast GPU. */
const OPERATIONS = 5e10;

async function main(): Promise<void> {
  console.log(await initBackend('webgpu', { kernels: 'off' }));
  const webgpu = createWebGpu(tf.backend() as WebGpuBackend, { batch: 64 });
  const last = tf.ones([4096]); // fewer numbers would be added in this process
  console.log('m × n × k, transposed    TFLOP/s: tiled, split, of the backend');
  for (const [m, n, k, transposeA, transposeB] of SHAPES) {
    const a = tf.ones(transposeA ? [k, m] : [m, k]);
    const b = tf.ones(transposeB ? [n, k] : [k, n]);
    const ours = (kernel: Product) => () => {
      const { dataId } = productBy(kernel, { a, b }, webgpu, { transposeA, transposeB });
      tf.backend().disposeData(dataId);
    };
    const speeds = [];
    for (const call of [ours('tiled'), ours('split'), () => tf.matMul(a, b, transposeA, transposeB).dispose()]) {
      const calls = Math.ceil(OPERATIONS / (2 * m * n * k));
      let best = Number.POSITIVE_INFINITY;
      for (let i = 0; i < 4; i++) {
        const began = performance.now();
        for (let c = 0; c < calls; c++) call();
        await tf.add(last, 1).data(); // comes after all others
        best = Math.min(best, performance.now() - began);
      }
      speeds.push(((calls * 2 * m * n * k) / best / 1e9).toPrecision(3));
    }
    const layout = `${transposeA ? 'T' : 'N'}${transposeB ? 'T' : 'N'}`;
    console.log(`${[m, n, k].join(' × ')} ${layout}`.padEnd(24), ...speeds);
    tf.dispose([a, b]);
  }
}

await runMain(import.meta.url, main);
