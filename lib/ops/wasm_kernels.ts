/** The project's own kernels for the wasm backend: each computes in one pass what an operation defines plainly. */
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import { adamWOnWasm } from './adamw/wasm_binding.ts';
import { attentionOnWasm } from './attention/wasm_binding.ts';
import { concatOnWasm } from './concat/wasm_binding.ts';
import { moveRowsOnWasm } from './move_rows/wasm_binding.ts';
import { createWasm, type WasmKernel } from './on_wasm.ts';
import { rmsNormOnWasm } from './rms_norm/wasm_binding.ts';
import { rotaryEmbeddingOnWasm } from './rotary_embedding/wasm_binding.ts';
import { sampleTokensOnWasm } from './sample_tokens/wasm_binding.ts';
import { swiGluOnWasm } from './swiglu/wasm_binding.ts';
import { tokenLogProbsOnWasm } from './token_log_probs/wasm_binding.ts';
import type { WasmBackend } from './wasm_backend.ts';
import { FUNCTIONS, RECORDS } from './wasm_interface.ts';

export const WASM_KERNELS: WasmKernel[] = [
  ...adamWOnWasm,
  ...attentionOnWasm,
  concatOnWasm,
  ...moveRowsOnWasm,
  ...rmsNormOnWasm,
  ...rotaryEmbeddingOnWasm,
  ...sampleTokensOnWasm,
  ...swiGluOnWasm,
  ...tokenLogProbsOnWasm,
];

/** What `npm run build` has compiled of them: where it lies as seen from this file, and from what is built of this file. */
const FILES = ['../dist/kernels.wasm', '../kernels.wasm'].map((path) => new URL(path, import.meta.url));

/** The part of it that is used here: Node's types have none without those of browsers. */
const { WebAssembly } = globalThis as unknown as {
  WebAssembly: {
    compile(bytes: Uint8Array): Promise<object>;
    instantiate(module: object, imports: object): Promise<{ exports: Parameters<typeof createWasm>[1] }>;
    Module: { customSections(module: object, name: string): ArrayBuffer[] };
  };
};

/** @returns whether there are any: if they were not built, or cannot run here, the plain definitions are used */
export async function registerWasmKernels(): Promise<boolean> {
  const backend = tf.backend() as WasmBackend;
  const exports = await instantiate(backend.wasm.asm.memory).catch(() => undefined);
  if (!exports) return false;
  const wasm = createWasm(backend, exports);
  for (const kernel of WASM_KERNELS) kernel.register(wasm);
  return true;
}

async function instantiate(memory: object) {
  const module = await WebAssembly.compile(await readFile(FILES[0]).catch(() => readFile(FILES[1])));
  const [written] = WebAssembly.Module.customSections(module, 'interface');
  if (new TextDecoder().decode(written) !== JSON.stringify({ FUNCTIONS, RECORDS })) return undefined; // built of other sources
  return (await WebAssembly.instantiate(module, { env: { memory, log: Math.log } })).exports;
}
