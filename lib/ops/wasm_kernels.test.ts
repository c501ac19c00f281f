/** The module that holds all kernels; each kernel is tested in the room of its operation. */
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test, vi } from 'vitest';
import { initBackend } from '../backend/index.ts';
import { registerWasmKernels, WASM_KERNELS } from './wasm_kernels.ts';

beforeAll(() => initBackend('wasm', { kernels: 'off' }));

const registered = () => WASM_KERNELS.filter(({ kernelName }) => tf.getKernel(kernelName, 'wasm'));
const OPTIONS = { shared: true, threads: 1, blas: null, kernels: true };

test('a module that was built of other sources is not used', async () => {
  vi.doMock('./wasm_interface.ts', async (original) => ({ ...(await original<object>()), RECORDS: {} }));
  vi.resetModules();
  const other = await import('./wasm_kernels.ts');
  expect((await other.registerWasmKernels(OPTIONS)).kernels).toBe(false);
  expect(registered()).toEqual([]);
  vi.doUnmock('./wasm_interface.ts');
});

test('are built, and registered', async () => {
  expect((await registerWasmKernels(OPTIONS)).kernels).toBe(true); // else: npm run build
  expect(registered()).toEqual(WASM_KERNELS);
});

test.each(['kernels', 'kernels_shared'])('%s claims no address for data of its own', async (name) => {
  const bytes = await readFile(`lib/dist/${name}.wasm`);
  // A module is a list of sections, each with its number and size (LEB128); 11 is data.
  const sections: number[] = [];
  for (let at = 8; at < bytes.length; ) {
    sections.push(bytes[at++]);
    let size = 0;
    let byte = 128;
    for (let shift = 0; byte >= 128; shift += 7) {
      byte = bytes[at++];
      size += (byte & 127) << shift;
    }
    at += size;
  }
  expect(sections).toContain(10); // code
  expect(sections).not.toContain(11);
});
