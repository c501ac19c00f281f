/** Picks the TensorFlow.js backend and makes it ready. */
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../run/errors.ts';
import { loadBlas } from './blas.ts';
import { loadTensorFlow } from './tensorflow.ts';
import { patchWasmBackend } from './wasm.ts';
import { loadWebGpu } from './webgpu.ts';

export const BACKENDS = ['auto', 'tensorflow', 'wasm', 'webgpu', 'cpu'] as const;
export type BackendName = (typeof BACKENDS)[number];

let ready: Promise<string> | undefined;

/**
 * Makes a backend current. A process has one: later calls return the first one's description.
 * @param name - `auto` takes native TensorFlow where it loads, else wasm
 * @param options - `gpu`: which one, by its index or a part of its name
 * @returns what was chosen and why, in one line
 * @throws {UserError} if a backend asked for by name cannot be loaded
 */
export function initBackend(
  name: BackendName = 'auto',
  { blas = 'auto', gpu }: { blas?: 'auto' | 'off'; gpu?: string | undefined } = {},
): Promise<string> {
  ready ??= load(name, blas === 'auto', gpu);
  return ready;
}

async function load(name: BackendName, blas: boolean, gpu: string | undefined): Promise<string> {
  tf.env().set('PROD', true); // no checks of every kernel's result, no advice printed
  if (name === 'cpu') {
    refuseGpu(name, gpu);
    await tf.setBackend('cpu');
    return 'cpu (plain JavaScript: slow, for tests)';
  }
  if (name === 'webgpu') return `webgpu (${await loadWebGpu(gpu)})`;
  const native = name === 'wasm' ? undefined : await loadTensorFlow(gpu);
  if (native?.loaded) return `tensorflow (${native.loaded})`;
  if (name === 'tensorflow') {
    throw new UserError(
      `backend tensorflow cannot be loaded (${native!.reason}): run \`npm install @tensorflow/tfjs-node-gpu\` (Linux, Windows) or \`npm install @tensorflow/tfjs-node\` (also macOS), or use --backend wasm`,
    );
  }
  refuseGpu('wasm', gpu);
  const chosen = await loadWasm(blas);
  return native ? `${chosen}; native TensorFlow: ${native.reason}` : chosen;
}

function refuseGpu(name: string, gpu: string | undefined): void {
  if (gpu === undefined) return;
  throw new UserError(
    `--gpu ${gpu}: the backend ${name} uses no GPU: pass --backend webgpu, or --backend tensorflow, or leave --gpu out`,
  );
}

async function loadWasm(withBlas: boolean): Promise<string> {
  await import('@tensorflow/tfjs-backend-wasm');
  await tf.setBackend('wasm');
  await tf.ready();
  const blas = withBlas ? await loadBlas() : null;
  patchWasmBackend(blas);
  if (blas) return `wasm, matrix products by ${blas.name}`;
  return `wasm alone (${withBlas ? 'no BLAS library found: OpenBLAS would make it several times faster' : '--blas off'})`;
}
