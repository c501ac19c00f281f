/**
 * Threads that share the work of one kernel call at a time. They run on the same memory; a call is cut into pieces, and each
 * thread takes the next piece until none is left. Where the cuts are depends on the shapes alone, so that results do not
 * depend on the number of threads.
 */
import { Worker } from 'node:worker_threads';
import { UserError } from '../errors.ts';

/** Functions by name, which take numbers, and last of these the items to compute: from `begin` to before `end`. */
export type Functions = Record<string, (...args: number[]) => void>;

/** A whole of `count` items, to be computed `grain` items at a time. */
export type Pieces = { count: number; grain: number };

export type Pool = {
  threads: number;
  has(name: string): boolean;
  /** Why there are fewer threads than were asked for, if so. */
  missing?: string | undefined;
  /**
   * Calls a function for all pieces, and returns when all are done.
   * @throws {UserError} if a thread has ended, or does not answer
   */
  run(name: string, args: number[], pieces: Pieces): void;
  /** Ends the threads. */
  close(): Promise<void>;
};

/** Numbers that are worth a piece of their own: handing one over takes about as long as touching a thousand. */
const PIECE = 2 ** 14;
const MOST_PIECES = 2 ** 8;

/**
 * @param count - items
 * @param cost - numbers that an item reads, writes or computes, about
 */
export function pieces(count: number, cost: number): Pieces {
  const grain = Math.ceil(Math.max(PIECE / Math.max(1, cost), count / MOST_PIECES));
  return { count, grain: grain < 4 ? grain : 4 * Math.ceil(grain / 4) }; // whole vectors, where items are single numbers
}

export const numberOfPieces = ({ count, grain }: Pieces): number => Math.ceil(count / grain);

/** What the threads share, besides the memory: words (int32) and the arguments of the call. */
type Shared = { words: Int32Array; args: Float64Array };

/** The words. TICKET is the number of the call, times {@link LIMIT}, plus the number of the next piece. */
const [TICKET, DONE, ASLEEP, WAITING, WORK, COUNT, GRAIN, ARGUMENTS, FAILED] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const LIMIT = 2 ** 9;
const MOST_ARGUMENTS = 24;
/** Times to look whether something has happened, before a thread goes to sleep: about a tenth of a millisecond. */
const LOOKS = 20_000;

const callOf = (ticket: number) => Math.floor(ticket / LIMIT);

/**
 * Computes pieces of the call under way, until none is left.
 * @returns what a piece has thrown: a bug of ours, as no kernel throws anything
 */
function takePieces({ words, args }: Shared, functions: Functions): unknown {
  let failure: unknown;
  let ticket = Atomics.load(words, TICKET);
  const call = callOf(ticket);
  // If these are already the next call's, then no piece of this one is left, and they are not used.
  const [work, count, grain] = [words[WORK], words[COUNT], words[GRAIN]];
  const numbers = Array.from(args.subarray(0, words[ARGUMENTS]));
  for (;;) {
    const piece = ticket - LIMIT * call;
    if (callOf(ticket) !== call || piece * grain >= count) return failure;
    const found = Atomics.compareExchange(words, TICKET, ticket, ticket + 1);
    if (found === ticket) {
      try {
        Object.values(functions)[work](...numbers, piece * grain, Math.min(count, (piece + 1) * grain));
      } catch (error) {
        failure = error;
        Atomics.store(words, FAILED, 1);
      }
      Atomics.add(words, DONE, 1);
      if (Atomics.load(words, WAITING) === 1) Atomics.notify(words, DONE);
      ticket = Atomics.load(words, TICKET);
    } else {
      ticket = found;
    }
  }
}

/** What a thread does: waits for calls, as long as it lives. */
export function serve(shared: Shared, functions: Functions): never {
  const { words } = shared;
  for (;;) {
    const before = Atomics.load(words, TICKET);
    takePieces(shared, functions);
    const call = callOf(before);
    let looks = LOOKS;
    while (callOf(Atomics.load(words, TICKET)) === call && looks > 0) looks--;
    if (looks > 0) continue;
    Atomics.add(words, ASLEEP, 1);
    for (let ticket = call * LIMIT; callOf(ticket) === call; ticket = Atomics.load(words, TICKET)) {
      Atomics.wait(words, TICKET, ticket);
    }
    Atomics.sub(words, ASLEEP, 1);
  }
}

/** What a thread is given when it starts. */
export type ThreadData = {
  shared: Shared;
  module: object | null;
  memory: object;
  thread: number;
  /** Its name. */
  blas: string | undefined;
};

/** As seen from this file, and from what is built of it. */
const FILES = { '.ts': '../dist/ops/thread.js', '.js': './thread.js' };

/**
 * @param functions - those of this thread; the others find theirs in the same order
 * @param others - what the other threads compute with; there are none if it is undefined
 */
export async function startPool(
  functions: Functions,
  threads: number,
  others?: Pick<ThreadData, 'module' | 'memory' | 'blas'>,
): Promise<Pool> {
  const buffer = new SharedArrayBuffer(64 + 8 * MOST_ARGUMENTS);
  const shared: Shared = { words: new Int32Array(buffer, 0, 16), args: new Float64Array(buffer, 64) };
  const { words } = shared;
  let ended: string | undefined;
  const file = new URL(FILES[import.meta.url.endsWith('.ts') ? '.ts' : '.js'], import.meta.url);
  const start = (thread: number) =>
    new Promise<Worker>((resolve, reject) => {
      const workerData = { ...others, shared, thread } as ThreadData;
      const worker = new Worker(file, { workerData, execArgv: [] });
      worker.once('message', () => {
        worker.unref(); // from now on it keeps no process alive
        resolve(worker);
      });
      worker.once('error', (error) => {
        ended = error.message;
        reject(error);
      });
      worker.once('exit', (code) => {
        ended ??= `exit code ${code}`;
        reject(new Error(ended));
      });
    });
  const starting = Array.from({ length: others ? threads - 1 : 0 }, (_, i) => start(i + 1));
  const results = await Promise.allSettled(starting);
  const workers = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
  const failed = results.find((result) => result.status === 'rejected');
  ended = undefined;
  let call = 0;
  const names = Object.keys(functions);

  const runAlone = (name: string, args: number[], { count, grain }: Pieces) => {
    for (let begin = 0; begin < count; begin += grain) functions[name](...args, begin, Math.min(count, begin + grain));
  };

  return {
    threads: 1 + workers.length,
    has: (name) => name in functions,
    missing: failed && String(failed.reason?.message),
    run(name, args, cut) {
      const total = numberOfPieces(cut);
      if (workers.length === 0 || total < 2) return runAlone(name, args, cut);
      if (ended !== undefined) throw new UserError(threadEnded(ended));
      shared.args.set(args);
      words[WORK] = names.indexOf(name);
      words[COUNT] = cut.count;
      words[GRAIN] = cut.grain;
      words[ARGUMENTS] = args.length;
      Atomics.store(words, DONE, 0);
      call = (call + 1) % (2 ** 31 / LIMIT);
      Atomics.store(words, TICKET, call * LIMIT);
      if (Atomics.load(words, ASLEEP) > 0) Atomics.notify(words, TICKET, total - 1);
      const failure = takePieces(shared, functions);
      awaitPieces(words, total);
      if (Atomics.exchange(words, FAILED, 0) === 1) throw failure ?? new Error(`${name} failed in another thread`);
    },
    close: async () => void (await Promise.all(workers.map((worker) => worker.terminate()))),
  };
}

/**
 * Waits for pieces that other threads have taken.
 * @param patience - seconds for which none may be done
 */
export function awaitPieces(words: Int32Array, total: number, patience = 60): void {
  let looks = LOOKS;
  while (Atomics.load(words, DONE) < total && looks > 0) looks--;
  if (looks > 0) return;
  Atomics.store(words, WAITING, 1);
  // A process that is stopped for an hour and goes on has waited for one of these seconds.
  let seconds = 0;
  for (let done = Atomics.load(words, DONE); done < total; done = Atomics.load(words, DONE)) {
    seconds = Atomics.wait(words, DONE, done, 1000) === 'timed-out' ? seconds + 1 : 0;
    if (seconds === patience) throw new UserError(threadEnded(`no answer for ${patience} seconds`));
  }
  Atomics.store(words, WAITING, 0);
}

const threadEnded = (reason: string): string =>
  `a thread of the wasm backend has ended (${reason}): continue from the last checkpoint with --resume, with --threads 1 if it happens again`;
