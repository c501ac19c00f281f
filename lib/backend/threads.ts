/** How many threads the libraries below a backend may use. */
import { availableParallelism } from 'node:os';

/** OpenMP (MKL, BLIS, some builds of OpenBLAS), OpenBLAS, Apple's Accelerate, native TensorFlow. */
export const THREAD_VARIABLES = [
  'OMP_NUM_THREADS',
  'OPENBLAS_NUM_THREADS',
  'MKL_NUM_THREADS',
  'BLIS_NUM_THREADS',
  'VECLIB_MAXIMUM_THREADS',
  'TF_NUM_INTRAOP_THREADS',
];

/**
 * Environment variables for each of several processes that share this machine: its cores are divided among them.
 * Without that, every process would take all of them, and they would spend their time waiting for each other.
 * @param processes - how many run side by side on this machine
 * @returns only what the user has not set; nothing for a process that is alone
 */
export function threadLimits(processes: number): Record<string, string> {
  if (processes === 1) return {};
  const threads = String(Math.max(1, Math.floor(availableParallelism() / processes)));
  const unset = THREAD_VARIABLES.filter((name) => process.env[name] === undefined);
  return Object.fromEntries(unset.map((name) => [name, threads]));
}
