/**
 * Matrix products alone: operations a second of our kernel, of BLAS where there is one, and of TensorFlow.js's own (XNNPACK,
 * which has one thread in Node).
 *
 *   npm run bench:products -- --threads 1 2
 */
import { Command } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import { initBackend } from '../lib/backend/index.ts';
import { runMain } from '../lib/cli/main.ts';
import { integer, parseOptions } from '../lib/cli/options.ts';
import { loadBlas } from '../lib/ops/mat_mul/blas.ts';
import { registerWasmKernels } from '../lib/ops/wasm_kernels.ts';

/** Rows and columns of the result, and the length of its sums: of a square, of training, and of decoding 128 rows. */
const SHAPES = [
  [1024, 1024, 1024],
  [6144, 128, 384],
  [3072, 128, 2048],
  [128, 128, 384],
  [128, 384, 128],
];
const LAYOUTS = { NN: [false, false], NT: [false, true], TN: [true, false] };

/** GFLOP/s of each shape in each layout: the best of several stretches of at least 20 ms. */
function measure(): number[] {
  return SHAPES.flatMap(([m, n, k]) =>
    Object.values(LAYOUTS).map(([transposeA, transposeB]) => {
      const a = tf.randomNormal(transposeA ? [k, m] : [m, k]);
      const b = tf.randomNormal(transposeB ? [n, k] : [k, n]);
      const product = () => tf.matMul(a, b, transposeA, transposeB).dispose();
      const seconds = (calls: number) => {
        const began = performance.now();
        for (let i = 0; i < calls; i++) product();
        return (performance.now() - began) / 1000;
      };
      for (let i = 0; i < 5; i++) product();
      const calls = Math.ceil(0.02 / seconds(1));
      const best = Math.min(...Array.from({ length: 10 }, () => seconds(calls) / calls));
      tf.dispose([a, b]);
      return (2 * m * n * k) / best / 1e9;
    }),
  );
}

async function main(): Promise<void> {
  const { threads } = parseOptions(
    new Command('bench:products')
      .description('Operations a second of matrix products: ours, BLAS, XNNPACK.')
      .option('--threads <n...>', 'how many', (text, before: number[] = []) => [...before, integer({ min: 1 })(text)]),
  );
  console.log('measuring: about 15 seconds for each column');
  await initBackend('wasm', { blas: 'off', kernels: 'off' });
  const columns: Record<string, number[]> = { XNNPACK: measure() };
  const blas = await loadBlas();
  for (const count of threads ?? [1, 2]) {
    for (const library of blas ? [blas, null] : [null]) {
      const options = { shared: true, threads: count, blas: library };
      const { pool } = await registerWasmKernels({ ...options, kernels: library === null });
      columns[`${library?.name ?? 'ours'}, ${pool.threads}`] = measure();
      await pool.close();
    }
  }
  const rows = SHAPES.flatMap((shape) => Object.keys(LAYOUTS).map((layout) => `${shape.join(' × ')} ${layout}`));
  console.log(`| GFLOP/s | ${Object.keys(columns).join(' | ')} |`);
  console.log(`|${'---|'.repeat(1 + Object.keys(columns).length)}`);
  rows.forEach((row, i) => {
    console.log(`| ${[row, ...Object.values(columns).map((column) => column[i].toFixed(0))].join(' | ')} |`);
  });
}

await runMain(import.meta.url, main);
