/**
 * Processes that work beside the one which trains: each gets numbered jobs, and does them with the newest weights that there
 * are. Weights are a file in shared memory, jobs and results go over Node's own channel.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  statfsSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { threadLimits } from '../backend/threads.ts';
import { mistakeIn, UserError } from '../errors.ts';
import { isRunning } from '../machine.ts';
import { isStopped } from './local.ts';

// ─── Weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Numbers of a policy, and after how many steps of training it had them. */
export type Weights = { version: number; values: Float32Array };

/** Bytes that Node reads or writes at once: 1 GiB. */
const PIECE = 2 ** 30;
const HEAD = 8;

/**
 * Puts weights where every process of this machine finds them. The file takes its name when all of it is there: whoever
 * reads it sees the old weights or the new ones, and never some of each.
 * @throws {UserError} if there is no room for them
 */
export function writeWeights(folder: string, { version, values }: Weights): void {
  const partial = join(folder, 'weights.partial');
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  try {
    const file = openSync(partial, 'w');
    try {
      writeSync(file, new Uint8Array(Float64Array.of(version).buffer));
      for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, Math.min(PIECE, bytes.length - at));
    } finally {
      closeSync(file);
    }
    renameSync(partial, join(folder, 'weights'));
  } catch (error) {
    throw new UserError(
      `the weights for the samplers (${Math.ceil(bytes.length / 2 ** 20)} MB) cannot be written to ${folder}: ${mistakeIn(error) ?? error}; make room there, or use --mode sync`,
    );
  }
}

/** The newest weights, if they are not those of `version`. */
export function readNewerWeights(folder: string, version: number): Weights | undefined {
  const file = openSync(join(folder, 'weights'), 'r');
  try {
    // Of one file, opened once: by the time that all is read, there may be another of that name.
    const head = new Float64Array(1);
    readSync(file, new Uint8Array(head.buffer), 0, HEAD, 0);
    if (head[0] === version) return undefined;
    const bytes = new Uint8Array(fstatSync(file).size - HEAD);
    for (let at = 0; at < bytes.length; )
      at += readSync(file, bytes, at, Math.min(PIECE, bytes.length - at), HEAD + at);
    return { version: head[0], values: new Float32Array(bytes.buffer) };
  } finally {
    closeSync(file);
  }
}

const PREFIX = 'grpo-weights-';

/**
 * A new folder for weights, in memory that looks like a folder, where the system has enough of it for the old ones and the
 * new ones; else among temporary files. Those that processes have left which were killed are removed.
 */
function newWeightsFolder(bytes: number): string {
  const places = ['/dev/shm', tmpdir()].filter(existsSync);
  for (const place of places) {
    for (const name of readdirSync(place)) {
      const pid = name.startsWith(PREFIX) ? Number(/^\d+/.exec(name.slice(PREFIX.length))?.[0]) : Number.NaN;
      if (pid > 0 && !isRunning(pid)) rmSync(join(place, name), { recursive: true, force: true });
    }
  }
  const hasRoom = (place: string) => {
    const { bavail, bsize } = statfsSync(place);
    return bavail * bsize > 3 * bytes;
  };
  return mkdtempSync(join(places.find(hasRoom) ?? tmpdir(), `${PREFIX}${process.pid}-`));
}

// ─── A sampler ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** What a sampler says. `stack` is there if it is a bug, and not a mistake of the user's. */
type Answer =
  | { is: 'alive' }
  | { is: 'ready' }
  | { is: 'done'; job: number; began: number; ended: number; result: unknown }
  | { is: 'failed'; message: string; stack?: string | undefined };

/** Where this process finds weights, if it is a sampler. */
const ownFolder = () => process.env.GRPO_WEIGHTS;

/** Whether this process is a sampler. */
export const isSampler = (): boolean => ownFolder() !== undefined;

/** Milliseconds between two signs of life. */
const BEAT = 1000;

/**
 * What a sampler process does until the trainer is gone.
 * @param prepare - is given what the trainer has set up, and the folder of the weights; returns what does a job. Results
 *   travel as structured clones
 */
export async function serveJobs<Setup>(
  prepare: (setup: Setup, folder: string) => Promise<(job: number) => Promise<unknown>>,
): Promise<void> {
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => {}); // Ctrl-C is the trainer's business
  const folder = ownFolder()!;
  const leave = () => {
    rmSync(folder, { recursive: true, force: true }); // the trainer had no time to, if it was killed
    process.exit(0);
  };
  process.once('disconnect', leave);
  if (!process.connected) leave();
  const say = (answer: Answer) => void (process.connected && process.send!(answer, () => {})); // to one who may just have gone
  const fail = (error: unknown) => {
    const mistake = mistakeIn(error);
    const { message, stack } = error as Error;
    say({ is: 'failed', message: mistake ?? message, stack: mistake === undefined ? stack : undefined });
  };
  setInterval(() => say({ is: 'alive' }), BEAT);
  let work: Promise<(job: number) => Promise<unknown>> | undefined;
  let last: Promise<void> = Promise.resolve();
  process.on('message', (message: { setup: Setup } | { job: number }) => {
    if ('setup' in message) {
      work = prepare(message.setup, folder);
      work.then(() => say({ is: 'ready' }), fail);
      return;
    }
    // One after the other; the next one is here already when one is done, whatever the trainer is busy with.
    last = last.then(async () => {
      const began = Date.now();
      try {
        const result = await (await work!)(message.job);
        say({ is: 'done', job: message.job, began, ended: Date.now(), result });
      } catch (error) {
        fail(error);
      }
    });
  });
  process.channel!.ref();
  await new Promise(() => {});
}

// ─── All of them ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** What came of a job: which sampler did it, and from when to when, milliseconds since the epoch. */
type Finished<T> = { job: number; sampler: number; began: number; ended: number; result: T };

export type Samplers<T> = {
  /** Weights for the jobs to come. */
  publish: (weights: Weights) => void;
  /** Gives a job to the sampler that has the fewest; false if all have as many as they take, or are not ready. */
  tryStart: (job: number) => boolean;
  /**
   * The job that was finished first, of those that were not asked for yet.
   * @throws {UserError} if a sampler cannot go on
   */
  next: () => Promise<Finished<T>>;
  /** How many are finished, and not asked for yet. */
  waiting: () => number;
  /** Ends all samplers. */
  close: () => void;
};

/** Looks, one a second, without a sign of life until a sampler is ended; and how many times as many while it is loading. */
const [PATIENCE, LOADING] = [30, 10];
/** So often one may be started anew without having finished a job. */
const MOST_STARTS = 3;
/** Jobs that a sampler has at a time: the one that it does, and the next. */
const AT_A_TIME = 2;

type Sampler = { child: ChildProcess; jobs: number[]; isReady: boolean; starts: number; looks: number };

/**
 * Starts this script, with the same arguments, as so many samplers. One that dies, or hangs, is started anew, and its jobs with
 * it: a job is a number, and what comes of it depends on nothing else but the weights.
 * @param options.setup - is sent to each
 * @param options.bytes - of the weights
 * @param options.say - tells the user
 * @param options.onFree - is called when a sampler takes another job
 */
export function startSamplers<T>(
  size: number,
  options: {
    setup: unknown;
    bytes: number;
    say: (line: string) => void;
    onFree: () => void;
    patience?: number;
    command?: string[];
  },
): Samplers<T> {
  const { setup, bytes, say, onFree, patience = PATIENCE } = options;
  const { command = [process.execPath, ...process.execArgv, ...process.argv.slice(1)] } = options;
  const folder = newWeightsFolder(bytes);
  const removeFolder = () => rmSync(folder, { recursive: true, force: true });
  process.once('exit', removeFolder);
  const finished: Finished<T>[] = [];
  const samplers: Sampler[] = [];
  let closed = false;
  let failure: Error | undefined;
  let wake = () => {};
  const fail = (error: Error) => {
    failure ??= error;
    wake();
  };

  const start = (index: number) => {
    const child = spawn(command[0], command.slice(1), {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      serialization: 'advanced',
      env: { ...process.env, ...threadLimits(1 + size), GRPO_WEIGHTS: folder },
    });
    const { jobs = [], starts = 0 } = samplers[index] ?? {};
    const sampler: Sampler = { child, jobs, isReady: false, starts: starts + 1, looks: 0 };
    samplers[index] = sampler;
    child.send({ setup }, () => {}); // of one that has just died, 'exit' tells
    child.on('error', fail); // it could not be started
    child.on('message', (answer: Answer) => {
      if (samplers[index] !== sampler) return; // another has taken its place
      sampler.looks = 0;
      if (answer.is === 'failed') {
        const { message, stack } = answer;
        fail(stack === undefined ? new UserError(message) : Object.assign(new Error(message), { stack }));
      } else if (answer.is === 'ready') {
        sampler.isReady = true;
        for (const job of sampler.jobs) child.send({ job }, () => {});
        onFree();
      } else if (answer.is === 'done') {
        const { is, result, ...done } = answer;
        finished.push({ ...done, sampler: index, result: result as T });
        sampler.jobs = sampler.jobs.filter((job) => job !== answer.job);
        sampler.starts = 0;
        wake();
        onFree();
      }
    });
    child.on('exit', (code, signal) => {
      if (closed || failure || samplers[index] !== sampler) return;
      const how = signal ? `was ended by ${signal}` : `ended with exit code ${code}`;
      const who = `sampler ${index} (process ${child.pid}) ${how}`;
      if (sampler.starts >= MOST_STARTS) {
        fail(
          new UserError(
            `${who}, ${MOST_STARTS} times in a row without having finished anything: is there enough memory? --mode sync needs no samplers`,
          ),
        );
        return;
      }
      say(
        `${who}: it is started anew${sampler.jobs.length === 0 ? '' : ', and what it was sampling is sampled again'}`,
      );
      start(index);
    });
  };
  // It is looks that count, not the time: a trainer that is busy, or was stopped (Ctrl-Z), hears of signs of life afterwards.
  const timer = setInterval(() => {
    for (const [index, sampler] of samplers.entries()) {
      sampler.looks += 1;
      if (sampler.looks < patience * (sampler.isReady ? 1 : LOADING)) continue;
      const why = isStopped(sampler.child.pid!) ? 'has been stopped (SIGSTOP)' : 'does not answer';
      say(`sampler ${index} (process ${sampler.child.pid}) ${why}: it is ended`);
      sampler.looks = 0;
      sampler.child.kill('SIGKILL');
    }
  }, BEAT);
  timer.unref();
  for (let index = 0; index < size; index++) start(index);

  return {
    publish: (weights) => writeWeights(folder, weights),
    tryStart: (job) => {
      const takes = samplers.filter(
        ({ isReady, jobs, child }) => isReady && jobs.length < AT_A_TIME && child.connected,
      );
      const idlest = takes.sort((a, b) => a.jobs.length - b.jobs.length)[0];
      if (!idlest) return false;
      idlest.jobs.push(job);
      idlest.child.send({ job }, () => {});
      return true;
    },
    next: async () => {
      for (;;) {
        if (failure) throw failure;
        if (finished.length > 0) return finished.shift()!;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    },
    waiting: () => finished.length,
    close: () => {
      closed = true;
      clearInterval(timer);
      for (const { child } of samplers) child.kill('SIGKILL');
      removeFolder();
      process.off('exit', removeFolder);
    },
  };
}
