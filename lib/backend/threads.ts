/** How many threads a backend may use. */
import { UserError } from '../errors.ts';
import { physicalCores } from '../machine.ts';

/** Those of the wasm backend where `--threads` is not given, and of native TensorFlow. */
const THREAD_VARIABLES = ['WASM_NUM_THREADS', 'TF_NUM_INTRAOP_THREADS'];

/** More threads than this do not help: the pieces of a kernel call become too small. */
const MOST_THREADS = 8;

/**
 * Threads of the wasm backend: as many as there are cores for this process, or what `WASM_NUM_THREADS` says.
 * @throws {UserError} if that is no number of threads
 */
export function defaultThreads(): number {
  const given = process.env.WASM_NUM_THREADS;
  if (!given) return share(1);
  const threads = Number(given);
  if (Number.isInteger(threads) && threads >= 1 && threads <= 64) return threads;
  throw new UserError(`WASM_NUM_THREADS must be an integer from 1 to 64, found ${given}: set it anew, or unset it`);
}

/** The threads of one of so many processes. */
const share = (processes: number) => Math.min(MOST_THREADS, Math.max(1, Math.floor(physicalCores() / processes)));

/**
 * Environment variables for each of several processes that share this machine: its cores are divided among them.
 * Without that, every process would take all of them, and they would spend their time waiting for each other.
 * @param processes - how many run side by side on this machine
 * @returns only what the user has not set; nothing for a process that is alone
 */
export function threadLimits(processes: number): Record<string, string> {
  if (processes === 1) return {};
  const unset = THREAD_VARIABLES.filter((name) => process.env[name] === undefined);
  return Object.fromEntries(unset.map((name) => [name, String(share(processes))]));
}
