/** The project's own kernels for the wasm backend, each of which computes in one pass what an operation defines plainly. */
import * as tf from '@tensorflow/tfjs';
import { adamWOnWasm } from './adamw/wasm_binding.ts';
import { addOnWasm } from './add/wasm_binding.ts';
import { appendOnWasm } from './append/wasm_binding.ts';
import { attentionOnWasm } from './attention/wasm_binding.ts';
import { concatOnWasm } from './concat/wasm_binding.ts';
import type { Blas } from './mat_mul/blas.ts';
import { isBlasFaster } from './mat_mul/fastest.ts';
import { matMulOnWasm } from './mat_mul/wasm_binding.ts';
import { moveRowsOnWasm } from './move_rows/wasm_binding.ts';
import { createWasm, type WasmKernel } from './on_wasm.ts';
import { rmsNormOnWasm } from './rms_norm/wasm_binding.ts';
import { rotaryEmbeddingOnWasm } from './rotary_embedding/wasm_binding.ts';
import { sampleTokensOnWasm } from './sample_tokens/wasm_binding.ts';
import { swiGluOnWasm } from './swiglu/wasm_binding.ts';
import { type Pool, startPool } from './thread_pool.ts';
import { tokenLogProbsOnWasm } from './token_log_probs/wasm_binding.ts';
import type { WasmBackend } from './wasm_backend.ts';
import { compile, instantiate } from './wasm_module.ts';

export const WASM_KERNELS: WasmKernel[] = [
  ...adamWOnWasm,
  ...appendOnWasm,
  ...attentionOnWasm,
  ...moveRowsOnWasm,
  ...rmsNormOnWasm,
  ...rotaryEmbeddingOnWasm,
  ...sampleTokensOnWasm,
  ...swiGluOnWasm,
  ...tokenLogProbsOnWasm,
];

/** Those that stand in the place of one of the backend's own. */
const REPLACEMENTS: WasmKernel[] = [addOnWasm, concatOnWasm];

/**
 * Registers them with the wasm backend, to be run by several threads.
 * @param shared - whether the backend's memory can be
 * @returns the threads there are; whether there are kernels: if they were not built, or cannot run here, the plain
 *   definitions are used; and BLAS, if products go there: not if it is slower here than our own, unless the user has named it
 */
export async function registerWasmKernels(options: {
  shared: boolean;
  threads: number;
  blas: Blas | null;
  kernels: boolean;
}): Promise<{ pool: Pool; kernels: boolean; blas: Blas | null }> {
  const backend = tf.backend() as WasmBackend;
  const memory = backend.wasm.wasmMemory ?? backend.wasm.asm.memory!;
  const { shared } = options;
  const module = (options.kernels && (await compile(shared).catch(() => null))) || null;
  const functions = await instantiate(module, memory, { thread: 0, blas: options.blas });
  const measured = module && options.blas && !options.blas.named;
  const blas = measured && !(await isBlasFaster(functions, backend)) ? null : options.blas;
  if (!blas) delete functions.matMulByBlas;
  // Where kernels are wanted and not built, neither is what the other threads run.
  const shares = shared && (module || (blas && !options.kernels));
  const others = shares ? { module, memory, blas: blas?.name } : undefined;
  const pool = await startPool(functions, options.threads, others);
  const wasm = createWasm(backend, pool);
  if (module || blas) matMulOnWasm.register(wasm);
  if (module) for (const kernel of [...WASM_KERNELS, ...REPLACEMENTS]) kernel.register(wasm);
  return { pool, kernels: module !== null, blas };
}
