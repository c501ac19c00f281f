/** Loads the build of TensorFlow.js's wasm backend whose memory several threads can share, in Node. */
import { createRequire } from 'node:module';
import * as tf from '@tensorflow/tfjs';
import { setThreadsCount } from '@tensorflow/tfjs-backend-wasm';

/**
 * Makes `wasm` the current backend, on memory that is shared if that is possible here.
 * TensorFlow.js starts eight workers for threads of its own, in a way that only browsers can: its loader is given others,
 * which are idle, and is told to compute on the thread that calls it.
 * @returns whether it is; if not, why
 */
export async function setSharedWasmBackend(): Promise<{ shared: boolean; reason?: string }> {
  const threads = createRequire(import.meta.url)('node:worker_threads');
  const browser = globalThis as { Worker?: unknown };
  const before = { own: threads.Worker, global: browser.Worker };
  const flag = 'WASM_HAS_MULTITHREAD_SUPPORT';
  try {
    if (typeof SharedArrayBuffer === 'undefined') throw new Error('no SharedArrayBuffer');
    threads.Worker = IdleWorker;
    setThreadsCount(1);
    tf.env().set(flag, true);
    if (!(await tf.setBackend('wasm'))) throw new Error('it does not load');
    return { shared: true };
  } catch (error) {
    tf.env().set(flag, false);
    await tf.setBackend('wasm');
    return { shared: false, reason: error instanceof Error ? error.message : String(error) };
  } finally {
    threads.Worker = before.own;
    browser.Worker = before.global; // which the loader sets, too
    if (browser.Worker === undefined) delete browser.Worker;
  }
}

/** What the loader expects of a worker: that it says when it has loaded. */
class IdleWorker {
  onmessage?: (event: { data: object }) => void;
  postMessage({ cmd }: { cmd: string }): void {
    if (cmd === 'load') queueMicrotask(() => this.onmessage?.({ data: { cmd: 'loaded' } }));
  }
  on(): void {}
  ref(): void {}
  unref(): void {}
  terminate(): void {}
}
