import * as tf from '@tensorflow/tfjs';
import { expect, test, vi } from 'vitest';
import { initBackend } from './index.ts';

test('without memory that threads can share there is one thread, and the description says why', async () => {
  vi.stubGlobal('SharedArrayBuffer', undefined);
  const description = await initBackend('wasm', { blas: 'off', kernels: 'auto', threads: 3 });
  expect(description).toBe('wasm, 1 thread (--blas off; not 3: no SharedArrayBuffer)');
  vi.unstubAllGlobals();
  expect(tf.getKernel('RmsNorm', 'wasm')).toBeDefined();
  const product = tf.matMul(tf.ones([9, 7]), tf.ones([7, 9]));
  expect(Array.from(await product.data())).toEqual(Array(81).fill(7));
});
