/**
 * Threads that share the work of one kernel call at a time. They run on the same memory; a call is cut into pieces, and each
 * thread takes the next piece until none is left. Where the cuts are depends on the shapes alone, so that results do not
 * depend on the number of threads.
 */
import { once } from 'node:events';
import { isDeepStrictEqual } from 'node:util';
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

/** The words. TICKET is the number of the call, times {@link LIMIT}, plus how many of its pieces nobody has taken. */
const [TICKET, DONE, ASLEEP, WAITING, WORK, COUNT, GRAIN, ARGUMENTS, FAILED] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
const LIMIT = 2 ** 9;
/** Goes up with every change of what the threads say to each other: others run what was built, perhaps before that. */
const PROTOCOL = 1;
const MOST_ARGUMENTS = 24;
/** Times to look whether something has happened, before a thread goes to sleep: about a tenth of a millisecond. */
const LOOKS = 20_000;

const callOf = (ticket: number) => Math.floor(ticket / LIMIT);

/**
 * Computes pieces of the call under way, until none is left.
 * @returns what a piece has thrown: a bug of ours, as no kernel throws anything
 */
function takePieces({ words, args }: Shared, functions: Functions[string][]): unknown {
  let failure: unknown;
  let ticket = Atomics.load(words, TICKET);
  const call = callOf(ticket);
  // These may be half the next call's already. Then all pieces of this one are taken, and the ticket says so.
  const [work, count, grain] = [words[WORK], words[COUNT], words[GRAIN]];
  const numbers = Array.from(args.subarray(0, words[ARGUMENTS]));
  while (callOf(ticket) === call && ticket > LIMIT * call) {
    const found = Atomics.compareExchange(words, TICKET, ticket, ticket - 1);
    if (found === ticket) {
      // It was this call's, so it still is: there is no next one before this piece is done.
      const begin = (ticket - LIMIT * call - 1) * grain;
      try {
        functions[work](...numbers, begin, Math.min(count, begin + grain));
      } catch (error) {
        failure = error;
        Atomics.store(words, FAILED, 1);
      }
      Atomics.add(words, DONE, 1);
      if (Atomics.load(words, WAITING) === 1) Atomics.notify(words, DONE);
    }
    ticket = Atomics.load(words, TICKET);
  }
  return failure;
}

/** What a thread does: waits for calls, as long as it lives. */
export function serve(shared: Shared, functions: Functions): never {
  const { words } = shared;
  const inOrder = Object.values(functions);
  for (;;) {
    const call = callOf(Atomics.load(words, TICKET));
    takePieces(shared, inOrder);
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
 * Starts the threads. If one of them does not start, there is only the one that there is.
 * @param functions - those of this thread; the others find theirs in the same order
 * @param others - what the other threads compute with; there are none if it is undefined
 */
export async function startPool(
  functions: Functions,
  threads: number,
  others?: Pick<ThreadData, 'module' | 'memory' | 'blas'>,
): Promise<Pool> {
  const alone: Pool = {
    threads: 1,
    has: (name) => name in functions,
    run(name, args, { count, grain }) {
      for (let begin = 0; begin < count; begin += grain)
        functions[name](...args, begin, Math.min(count, begin + grain));
    },
    close: async () => {},
  };
  if (!others || threads === 1) return alone;

  const buffer = new SharedArrayBuffer(64 + 8 * MOST_ARGUMENTS);
  const shared: Shared = { words: new Int32Array(buffer, 0, 16), args: new Float64Array(buffer, 64) };
  const [names, inOrder] = [Object.keys(functions), Object.values(functions)];
  const { workers, ended } = await startWorkers(shared, threads - 1, others, names);
  const close = async () => void (await Promise.all(workers.map((worker) => worker.terminate())));
  const missing = ended();
  if (missing !== undefined) {
    await close();
    return { ...alone, missing };
  }
  const { words, args } = shared;
  let call = 0;
  return {
    ...alone,
    threads,
    close,
    run(name, numbers, cut) {
      const total = numberOfPieces(cut);
      if (total < 2) return alone.run(name, numbers, cut);
      const reason = ended();
      if (reason !== undefined) throw new UserError(threadEnded(reason));
      args.set(numbers);
      words[WORK] = names.indexOf(name);
      words[COUNT] = cut.count;
      words[GRAIN] = cut.grain;
      words[ARGUMENTS] = numbers.length;
      Atomics.store(words, DONE, 0);
      call = (call + 1) % (2 ** 31 / LIMIT);
      Atomics.store(words, TICKET, call * LIMIT + total);
      if (Atomics.load(words, ASLEEP) > 0) Atomics.notify(words, TICKET, total - 1);
      const failure = takePieces(shared, inOrder);
      awaitPieces(words, total);
      if (Atomics.exchange(words, FAILED, 0) === 1) throw failure ?? new Error(`${name} failed in another thread`);
    },
  };
}

/**
 * Starts workers, and waits until each has said that it is ready, or has ended.
 * @param names - the functions that they are to have, in this order
 * @returns also `ended()`: why one of them is not there, or not any more
 */
async function startWorkers(
  shared: Shared,
  count: number,
  others: Pick<ThreadData, 'module' | 'memory' | 'blas'>,
  names: string[],
): Promise<{ workers: Worker[]; ended: () => string | undefined }> {
  let ended: string | undefined;
  const file = new URL(FILES[import.meta.url.endsWith('.ts') ? '.ts' : '.js'], import.meta.url);
  const workers = Array.from({ length: count }, (_, i) => {
    const workerData: ThreadData = { ...others, shared, thread: i + 1 };
    return new Worker(file, { workerData, execArgv: [] });
  });
  const started = workers.map((worker) => {
    worker.once('error', ({ message }) => {
      ended ??= message;
    });
    worker.once('exit', (code) => {
      ended ??= `exit code ${code}`;
    });
    worker.once('message', (ready: unknown) => {
      if (!isDeepStrictEqual(ready, readyWith(names))) ended ??= 'lib/dist is of other sources: run `npm run build`';
      worker.unref(); // from now on it keeps no process alive
    });
    return Promise.race([once(worker, 'message'), once(worker, 'exit')]);
  });
  await Promise.allSettled(started);
  return { workers, ended: () => ended };
}

/** What a thread says when it is ready, by which it is known to be built of the same sources. */
export const readyWith = (names: string[]) => ({ names, protocol: PROTOCOL });

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
