/** Picks the TensorFlow.js backend and makes it ready. */
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { loadBlas } from '../ops/mat_mul/blas.ts';
import { registerWasmKernels } from '../ops/wasm_kernels.ts';
import type { WebGpuBackend } from '../ops/webgpu_backend.ts';
import type { Gpu } from './gpus.ts';
import { setSharedWasmBackend } from './shared_memory.ts';
import { loadTensorFlow, nvidiaGpus, type TensorFlow } from './tensorflow.ts';
import { defaultThreads } from './threads.ts';
import { patchWasmBackend } from './wasm.ts';
import { loadWebGpu, startWebGpu } from './webgpu.ts';

export const BACKENDS = ['auto', 'tensorflow', 'wasm', 'webgpu', 'cpu'] as const;
export type BackendName = (typeof BACKENDS)[number];

let ready: Promise<string> | undefined;

/**
 * Makes a backend current. A process has one: later calls return the first one's description.
 * @param name - `auto` takes native TensorFlow where it has a GPU, else wasm, which is faster on a CPU (and from which a run may
 *   go to a GPU when it knows its model: `takeFasterGpu`)
 * @param options - on wasm, without a CBLAS if `blas` is 'off'; on wasm and webgpu, without the project's own kernels if `kernels`
 *   is 'off' (or the environment variable `TFJS_KERNELS`); `threads`: of wasm (default: one for each core, at most 8); `gpu`: which
 *   one, by its index or a part of its name
 * @returns what was chosen and why, in one line
 * @throws {UserError} if a backend asked for by name cannot be loaded
 */
export function initBackend(
  name: BackendName = 'auto',
  { blas = 'auto', kernels = 'auto', gpu, threads }: BackendOptions = {},
): Promise<string> {
  ready ??= load(name, { blas, kernels, gpu, threads });
  return ready;
}

/** Makes webgpu current in place of wasm, until {@link becomeWasm}. */
export async function becomeWebGpu(gpu: Gpu, { kernels }: BackendOptions): Promise<string> {
  const description = `webgpu (${await startWebGpu(gpu, { kernels: withKernels(kernels) })})`;
  ready = Promise.resolve(description);
  return description;
}

/** Takes {@link becomeWebGpu} back. */
export async function becomeWasm(description: string): Promise<void> {
  await tf.setBackend('wasm');
  const left = tf.findBackend('webgpu') as WebGpuBackend | null;
  if (left) tf.removeBackend('webgpu');
  left?.device.destroy(); // and with it its memory, and what still waits for it
  ready = Promise.resolve(description);
}

const withKernels = (kernels: BackendOptions['kernels']) => kernels !== 'off' && process.env.TFJS_KERNELS !== 'off';

export type BackendOptions = {
  blas?: 'auto' | 'off';
  kernels?: 'auto' | 'off';
  gpu?: string | undefined;
  threads?: number | undefined;
};

async function load(name: BackendName, { blas, kernels, gpu, threads }: BackendOptions): Promise<string> {
  tf.env().set('PROD', true); // no checks of every kernel's result, no advice printed
  if (name === 'cpu') {
    refuseGpu(name, gpu);
    await tf.setBackend('cpu');
    return 'cpu (plain JavaScript: slow, for tests)';
  }
  const own = withKernels(kernels);
  if (name === 'webgpu') return `webgpu (${await loadWebGpu(gpu, { kernels: own })})`;
  const native = await tryNative(name, gpu);
  if (native?.loaded && (name === 'tensorflow' || native.usesGpu)) return `tensorflow (${native.loaded})`;
  if (name === 'tensorflow') {
    throw new UserError(
      `backend tensorflow cannot be loaded (${native!.reason}): run \`npm install @tensorflow/tfjs-node-gpu\` (Linux, Windows) or \`npm install @tensorflow/tfjs-node\` (also macOS), or use --backend wasm`,
    );
  }
  refuseGpu('wasm', gpu);
  const chosen = await loadWasm({ blas: blas === 'auto', kernels: own, threads: threads ?? defaultThreads() });
  return native ? `${chosen}; native TensorFlow: ${native.reason ?? native.loaded}` : chosen;
}

async function tryNative(name: BackendName, gpu?: string): Promise<TensorFlow | undefined> {
  if (name === 'wasm') return undefined;
  // Loading it takes a second and hundreds of MB.
  if (name === 'auto' && gpu === undefined && (await nvidiaGpus()).length === 0)
    return { reason: 'no NVIDIA GPU found' };
  return loadTensorFlow(gpu);
}

function refuseGpu(name: string, gpu: string | undefined): void {
  if (gpu === undefined) return;
  throw new UserError(
    `--gpu ${gpu}: the backend ${name} uses no GPU: pass --backend webgpu, or --backend tensorflow, or leave --gpu out`,
  );
}

async function loadWasm(wanted: { blas: boolean; kernels: boolean; threads: number }): Promise<string> {
  const { shared, reason } = await withoutListeners(setSharedWasmBackend);
  const blas = wanted.blas ? await loadBlas() : null;
  patchWasmBackend();
  const { pool, kernels, ...taken } = await registerWasmKernels({ ...wanted, shared, blas });
  const none = wanted.blas ? 'no BLAS library found: OpenBLAS would make it faster still' : '--blas off';
  const without = blas ? `matrix products by our kernel, which is faster here than ${blas.name}` : none;
  const notes = [taken.blas ? `matrix products by ${taken.blas.name}` : without];
  if (!wanted.kernels) notes.push('--kernels off');
  else if (!kernels) notes.push('kernels not built, of other sources, or not for this engine: run `npm run build`');
  const fewer = pool.missing ?? reason;
  if (pool.threads < wanted.threads && fewer) notes.push(`not ${wanted.threads}: ${fewer}`);
  return `wasm, ${pool.threads} ${pool.threads === 1 ? 'thread' : 'threads'} (${notes.join('; ')})`;
}

/**
 * Takes back the listeners for uncaught errors that `load` adds to the process: Emscripten's throw the error again, upon
 * which Node prints 38 KB of minified code before the message and exits with 7.
 */
async function withoutListeners<T>(load: () => Promise<T>): Promise<T> {
  const process: NodeJS.EventEmitter = globalThis.process;
  const events = ['uncaughtException', 'unhandledRejection'];
  const before = events.flatMap((event) => process.listeners(event));
  const result = await load();
  for (const event of events) {
    const added = process.listeners(event).filter((listener) => !before.includes(listener)) as (() => void)[];
    for (const listener of added) process.off(event, listener);
  }
  return result;
}
