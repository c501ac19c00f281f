/** The options of `initBackend`, as commands offer them. */
import { Option } from '@commander-js/extra-typings';
import { BACKENDS } from '../backend/index.ts';
import { integer } from './options.ts';

/** A new option each time: one belongs to one command. */
export const backendOptions = {
  backend: () => new Option('--backend <name>', 'of TensorFlow.js').choices(BACKENDS).default('auto' as const),
  gpu: () => new Option('--gpu <gpu>', 'which one of several: its number, or (webgpu) a part of its name'),
  threads: () =>
    new Option('--threads <n>', 'of wasm (default: one for each core, at most 8)').argParser(
      integer({ min: 1, max: 64 }),
    ),
  blas: () => new Option('--blas <mode>', 'CBLAS on wasm').choices(['auto', 'off']).default('auto' as const),
  kernels: () =>
    new Option('--kernels <mode>', 'fused operations on wasm and webgpu')
      .choices(['auto', 'off'])
      .default('auto' as const),
};
