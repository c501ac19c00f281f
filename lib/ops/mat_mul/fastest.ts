/** Which product to take, where a machine has two: a library that does not know the processor can be the slower one. */
import { setTimeout } from 'node:timers/promises';
import type { Functions } from '../thread_pool.ts';
import type { WasmBackend } from '../wasm_backend.ts';

/** A product of training, of which each call takes less than a millisecond. */
const [M, N, K] = [96, 256, 256];

/** Our kernel is taken only where it is clearly the faster one: two that are alike must not change places from run to run. */
const CLEARLY = 1.25;

/**
 * Measures our kernel and BLAS in turns, on one thread.
 * @returns whether BLAS is to be taken
 */
export async function isBlasFaster({ matMul, matMulByBlas }: Functions, { wasm }: WasmBackend): Promise<boolean> {
  const scratchSize = 256 * (M + N) + 48;
  const address = wasm._malloc(4 * (M * K + K * N + M * N + scratchSize)) >>> 0;
  const [a, b, c] = [0, M * K, M * K + K * N].map((offset) => address + 4 * offset);
  const scratch = c + 4 * M * N;
  wasm.HEAPU8.fill(0, address, scratch); // numbers that happen to be denormal would take longer
  const time = (product: Functions[string]) => {
    const began = performance.now();
    product(a, b, c, M, N, K, 0, 1, M, 128, scratch, scratchSize, 0, N / 128);
    return performance.now() - began;
  };
  // The engine compiles what is called often anew, in the background.
  for (let i = 0; i < 10; i++) time(matMul);
  await setTimeout(20);
  let [ours, library] = [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
  for (let i = 0; i < 12; i++) {
    ours = Math.min(ours, time(matMul));
    library = Math.min(library, time(matMulByBlas));
  }
  wasm._free(address);
  return library < CLEARLY * ours;
}
