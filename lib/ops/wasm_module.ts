/** The compiled kernels, as each thread needs them: of its own, on the memory of all. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { setFlagsFromString } from 'node:v8';
import type { Blas } from './mat_mul/blas.ts';
import type { Functions } from './thread_pool.ts';
import { FUNCTIONS, RECORDS } from './wasm_interface.ts';

/** The part of it that is used here: Node's types have none without those of browsers. */
const { WebAssembly } = globalThis as unknown as {
  WebAssembly: {
    compile(bytes: Uint8Array): Promise<object>;
    instantiate(module: object, imports: object): Promise<{ exports: Functions }>;
    Module: { customSections(module: object, name: string): ArrayBuffer[] };
  };
};

/**
 * What `npm run build` has compiled.
 * @param shared - whether the memory is shared among threads; then with multiply-add in one instruction, too
 * @returns undefined if it was not built, or of other sources
 * @throws if it cannot run here
 */
export async function compile(shared: boolean): Promise<object | undefined> {
  const name = shared ? 'kernels_shared.wasm' : 'kernels.wasm';
  // As seen from this file, from lib/dist, which is built of it, and from dist/lib, which is what the package has of it.
  const files = [`../dist/${name}`, `../${name}`, `../../../lib/dist/${name}`].map(
    (path) => new URL(path, import.meta.url),
  );
  const file = files.find((file) => existsSync(file));
  if (!file) return undefined;
  const bytes = await readFile(file);
  // Node 20 has it behind a flag. Later ones do not know the flag, and say nothing; a browser has no version of Node.
  if (shared && process.versions.node?.startsWith('20.')) setFlagsFromString('--experimental-wasm-relaxed-simd');
  const module = await WebAssembly.compile(bytes);
  const [written] = WebAssembly.Module.customSections(module, 'interface');
  return new TextDecoder().decode(written) === JSON.stringify({ FUNCTIONS, RECORDS }) ? module : undefined;
}

/**
 * @param module - from {@link compile}; null for none
 * @param thread - its number, from 0
 * @returns the kernels; and `matMulByBlas`, where there is one
 */
export async function instantiate(
  module: object | null,
  memory: object,
  { thread, blas }: { thread: number; blas: Blas | null },
): Promise<Functions> {
  const imports = { env: { memory, log: Math.log, thread } };
  const kernels = module && (await WebAssembly.instantiate(module, imports)).exports;
  return { ...kernels, ...(blas && { matMulByBlas: blas.matMulOn(memory as { buffer: ArrayBufferLike }) }) };
}
