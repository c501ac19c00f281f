import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { initBackend } from '../../backend/index.ts';
import type { WasmBackend } from '../wasm_backend.ts';
import { isBlasFaster } from './fastest.ts';

beforeAll(() => initBackend('wasm', { kernels: 'off', blas: 'off' }));

const taking = (ms: number) => () => {
  const end = performance.now() + ms;
  while (performance.now() < end);
};

test.each([
  { ours: 1, blas: 0.2, taken: true },
  { ours: 1, blas: 1, taken: true },
  { ours: 0.2, blas: 1, taken: false },
])('BLAS is taken unless it is clearly slower: $blas ms against $ours', async ({ ours, blas, taken }) => {
  const backend = tf.backend() as WasmBackend;
  expect(await isBlasFaster({ matMul: taking(ours), matMulByBlas: taking(blas) }, backend)).toBe(taken);
});
