import { createRequire } from 'node:module';
import * as tf from '@tensorflow/tfjs';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';

/** A process has one backend: each test loads the module anew. */
let initBackend: typeof import('./index.ts').initBackend;
let UserError: typeof import('../errors.ts').UserError;
beforeEach(async () => {
  vi.stubEnv('TFJS_KERNELS', '');
  vi.resetModules();
  ({ initBackend } = await import('./index.ts'));
  ({ UserError } = await import('../errors.ts'));
});
afterEach(() => vi.unstubAllEnvs());

const { resolve } = createRequire(import.meta.url);
const installed = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'].some((name) => {
  try {
    return resolve(name) !== '';
  } catch {
    return false;
  }
});
const reason = installed ? ' (skipped: it is installed)' : '';

const oneSentence = async (promise: Promise<unknown>): Promise<string> => {
  const error = await promise.catch((error: Error) => error);
  expect(error).toBeInstanceOf(UserError);
  const { message } = error as Error;
  expect(message).not.toContain('\n');
  return message;
};

test.skipIf(installed)(`tensorflow, where it is not installed, is refused with how to get it${reason}`, async () => {
  const message = await oneSentence(initBackend('tensorflow'));
  expect(message).toMatch(/^backend tensorflow cannot be loaded/);
  expect(message).toContain('npm install @tensorflow/tfjs-node');
  expect(message).toContain('--backend wasm');
});

test('BLAS_LIBRARY that cannot be loaded is refused, not passed over', async () => {
  vi.stubEnv('BLAS_LIBRARY', '/nowhere/libblas.so');
  const message = await oneSentence(initBackend('wasm'));
  expect(message).toContain('BLAS_LIBRARY=/nowhere/libblas.so cannot be used');
});

test('BLAS_LIBRARY that has no cblas_sgemm is refused', async () => {
  vi.stubEnv('BLAS_LIBRARY', process.platform === 'linux' ? 'libc.so.6' : process.execPath);
  expect(await oneSentence(initBackend('wasm'))).toContain('cannot be used');
});

test('WASM_NUM_THREADS says how many threads there are, and is refused if it does not', async () => {
  vi.stubEnv('WASM_NUM_THREADS', 'many');
  expect(await oneSentence(initBackend('wasm'))).toBe(
    'WASM_NUM_THREADS must be an integer from 1 to 64, found many: set it anew, or unset it',
  );
});

test('--blas off asks for no library; a process has one backend', async () => {
  vi.stubEnv('BLAS_LIBRARY', '/nowhere/libblas.so');
  const description = await initBackend('wasm', { blas: 'off' });
  expect(description).toMatch(/^wasm, \d+ threads? \(--blas off\)$/);
  expect(await initBackend('cpu')).toBe(description);
});

test.each(['off', 'auto'] as const)('--kernels %s: whether they are registered', async (kernels) => {
  if (tf.getKernel('RmsNorm', 'wasm')) tf.unregisterKernel('RmsNorm', 'wasm'); // of the tests before
  const description = await initBackend('wasm', { kernels });
  expect(description.includes('--kernels off')).toBe(kernels === 'off');
  expect(tf.getKernel('RmsNorm', 'wasm') === undefined).toBe(kernels === 'off');
});

test.each(['wasm', 'cpu'] as const)('--gpu is refused where there is none to choose: %s', async (name) => {
  const message = await oneSentence(initBackend(name, { gpu: '0' }));
  expect(message).toMatch(/^--gpu 0: the backend (wasm|cpu) uses no GPU/);
});
