/** Picks the TensorFlow.js backend and makes it ready. */
import { createRequire } from 'node:module';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../run/errors.ts';
import { loadBlas } from './blas.ts';
import { patchWasmBackend } from './wasm.ts';

export const BACKENDS = ['auto', 'tensorflow', 'wasm', 'cpu'] as const;
export type BackendName = (typeof BACKENDS)[number];

let ready: Promise<string> | undefined;

/**
 * Makes a backend current. A process has one: later calls return the first one's description.
 * @param name - `auto` takes native TensorFlow where it loads, else wasm
 * @returns what was chosen and why, in one line
 * @throws {UserError} if a backend asked for by name cannot be loaded
 */
export function initBackend(
  name: BackendName = 'auto',
  { blas = 'auto' }: { blas?: 'auto' | 'off' } = {},
): Promise<string> {
  ready ??= load(name, blas === 'auto');
  return ready;
}

async function load(name: BackendName, blas: boolean): Promise<string> {
  tf.env().set('PROD', true); // no checks of every kernel's result, no advice printed
  if (name === 'cpu') {
    await tf.setBackend('cpu');
    return 'cpu (plain JavaScript: slow, for tests)';
  }
  const native = name === 'wasm' ? undefined : await loadTensorFlow();
  if (native?.loaded) return native.loaded;
  if (name === 'tensorflow') {
    throw new UserError(
      `backend tensorflow cannot be loaded (${native!.reason}): run \`npm install @tensorflow/tfjs-node-gpu\` (Linux, Windows) or \`npm install @tensorflow/tfjs-node\` (also macOS), or use --backend wasm`,
    );
  }
  return `${await loadWasm(blas)}${native ? `; native TensorFlow is not installed` : ''}`;
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

async function loadTensorFlow(): Promise<{ loaded?: string; reason?: string }> {
  // tfjs-node calls this function of Node, which Node 23 removed.
  const util = createRequire(`${process.cwd()}/`)('node:util') as Record<string, unknown>;
  util.isNullOrUndefined ??= (value: unknown) => value === null || value === undefined;
  const reasons: string[] = [];
  for (const name of ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node']) {
    try {
      await import(name);
      await tf.setBackend('tensorflow');
      return { loaded: `tensorflow (${name})` };
    } catch (error) {
      reasons.push(`${name}: ${(error instanceof Error ? error.message : String(error)).split('\n')[0]}`);
    }
  }
  return { reason: reasons.join('; ') };
}
