/** One of the threads of thread_pool.ts, with a module of kernels of its own on the memory of all. */
import { parentPort, workerData } from 'node:worker_threads';
import { loadBlas } from './mat_mul/blas.ts';
import { readyWith, serve, type ThreadData } from './thread_pool.ts';
import { instantiate } from './wasm_module.ts';

const { shared, module, memory, thread, blas } = workerData as ThreadData;
const functions = await instantiate(module, memory, { thread, blas: blas === undefined ? null : await loadBlas(blas) });
parentPort!.postMessage(readyWith(Object.keys(functions)));
serve(shared, functions);
