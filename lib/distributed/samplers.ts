/**
 * Processes that work beside the one which trains: each gets one numbered job after the other, and does it with the newest
 * weights that there are. Weights are a file in shared memory, jobs and results go over Node's own channel.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { threadLimits } from '../backend/threads.ts';
import { UserError } from '../errors.ts';
import { isStopped } from './local.ts';

// ─── Weights ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Numbers of a policy, and after how many steps of training it had them. */
export type Weights = { version: number; values: Float32Array };

/**
 * Puts weights where every process of this machine finds them. The file takes its name when all of it is there: whoever
 * reads it sees the old weights or the new ones, and never some of each.
 */
export function writeWeights(folder: string, { version, values }: Weights): void {
  const partial = join(folder, 'weights.partial');
  const bytes = new Uint8Array(8 + values.byteLength);
  new DataView(bytes.buffer).setFloat64(0, version, true);
  bytes.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), 8);
  writeFileSync(partial, bytes);
  renameSync(partial, join(folder, 'weights'));
}

/** The newest weights, if they are newer than `version`. */
export function readNewerWeights(folder: string, version: number): Weights | undefined {
  const file = openSync(join(folder, 'weights'), 'r');
  try {
    // Of one file, opened once: by the time that all is read, there may be another of that name.
    const head = new Uint8Array(8);
    readSync(file, head, 0, 8, 0);
    const found = new DataView(head.buffer).getFloat64(0, true);
    if (found === version) return undefined;
    const bytes = readFileSync(file);
    return {
      version: found,
      values: new Float32Array(bytes.buffer.slice(bytes.byteOffset + 8, bytes.byteOffset + bytes.length)),
    };
  } finally {
    closeSync(file);
  }
}

/** Memory that looks like a folder, where the system has any; else the folder for temporary files. */
const sharedFolder = () => (existsSync('/dev/shm') ? '/dev/shm' : tmpdir());

// ─── A sampler ───────────────────────────────────────────────────────────────────────────────────────────────────────

type Answer = { result: unknown } | { failed: string };

/** Which sampler this process is, and where its weights are; undefined in the one that trains. */
export const ownSampler = (): { index: number; folder: string } | undefined =>
  process.env.GRPO_SAMPLER === undefined
    ? undefined
    : { index: Number(process.env.GRPO_SAMPLER), folder: process.env.GRPO_WEIGHTS! };

/**
 * Does what it is told until the trainer is gone.
 * @param work - its results travel as structured clones
 */
export async function serveJobs(work: (job: number) => Promise<unknown>): Promise<void> {
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => {}); // Ctrl-C is the trainer's business
  process.once('disconnect', () => {
    rmSync(ownSampler()!.folder, { recursive: true, force: true }); // the trainer had no time to, if it was killed
    process.exit(0);
  });
  const answer = (message: Answer) => process.connected && process.send!(message);
  process.on('message', ({ job }: { job: number }) => {
    work(job).then(
      (result) => answer({ result }),
      (error) => answer({ failed: error instanceof UserError ? error.message : String((error as Error).stack) }),
    );
  });
  process.channel!.ref();
  answer({ result: undefined }); // ready
  await new Promise(() => {});
}

// ─── All of them ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** What came of a job: which sampler did it, and from when to when, milliseconds since the epoch. */
export type Finished<T> = { job: number; sampler: number; began: number; ended: number; result: T };

export type Samplers<T> = {
  /** Weights for the jobs to come. */
  publish: (weights: Weights) => void;
  /** Has a job done by the first sampler that has nothing to do; false if all have something to do. */
  tryStart: (job: number) => boolean;
  /** The job that was finished first, of those that were not asked for yet. */
  next: () => Promise<Finished<T>>;
  /** How many are finished, and not asked for yet. */
  waiting: () => number;
  /** Ends all samplers. */
  close: () => void;
};

/** Seconds that a sampler may be stopped for; and how many times as long as the longest job before one may take. */
const [PATIENCE, TIMES] = [30, 20];
/** So often one may be started anew without having finished a job. */
const MOST_STARTS = 3;

/**
 * Starts this script, with the same arguments, as so many samplers. One that dies, or hangs, is started anew, and its job with
 * it: a job is a number, and what comes of it depends on nothing else but the weights.
 * @param options.say - tells the user
 * @param options.onFree - is called when a sampler has nothing to do
 */
export function startSamplers<T>(
  size: number,
  {
    say,
    onFree,
    patience = PATIENCE,
    env = {},
  }: { say: (line: string) => void; onFree: () => void; patience?: number; env?: NodeJS.ProcessEnv },
): Samplers<T> {
  const folder = mkdtempSync(join(sharedFolder(), 'grpo-weights-'));
  const removeFolder = () => rmSync(folder, { recursive: true, force: true });
  process.once('exit', removeFolder);
  const finished: Finished<T>[] = [];
  const samplers: {
    child: ChildProcess;
    job: number | undefined;
    began: number;
    ready: boolean;
    starts: number;
    stopped: number;
  }[] = [];
  let closed = false;
  let longest = Number.POSITIVE_INFINITY;
  let failure: Error | undefined;
  let wake = () => {};

  const fail = (error: Error) => {
    failure ??= error;
    wake();
  };
  const give = (index: number, job: number) => {
    const sampler = samplers[index];
    Object.assign(sampler, { job, began: Date.now() });
    sampler.child.send({ job }, () => {}); // of one that has just died, 'exit' tells
  };
  const start = (index: number) => {
    const child = spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      serialization: 'advanced',
      env: { ...process.env, ...threadLimits(1 + size), ...env, GRPO_SAMPLER: String(index), GRPO_WEIGHTS: folder },
    });
    const before = samplers[index];
    const sampler = {
      child,
      job: before?.job,
      began: Date.now(),
      ready: false,
      starts: (before?.starts ?? 0) + 1,
      stopped: 0,
    };
    samplers[index] = sampler;
    child.on('message', (answer: Answer) => {
      if ('failed' in answer) return fail(new UserError(answer.failed));
      const { job } = sampler;
      if (!sampler.ready) {
        sampler.ready = true;
        if (job === undefined) onFree();
        else give(index, job);
        return;
      }
      const ended = Date.now();
      longest = Math.max(Number.isFinite(longest) ? longest : 0, ended - sampler.began);
      finished.push({ job: job!, sampler: index, began: sampler.began, ended, result: answer.result as T });
      Object.assign(sampler, { job: undefined, starts: 0 });
      wake();
      onFree();
    });
    child.on('exit', (code, signal) => {
      if (closed) return;
      const how = signal ? `was ended by ${signal}` : `ended with exit code ${code}`;
      if (sampler.starts >= MOST_STARTS) {
        fail(
          new UserError(
            `sampler ${index} (process ${child.pid}) ${how}, ${MOST_STARTS} times without having finished anything: what is above this says why; --mode sync needs none`,
          ),
        );
        return;
      }
      say(
        `sampler ${index} (process ${child.pid}) ${how}: it is started anew${sampler.job === undefined ? '' : ', and what it was sampling is sampled again'}`,
      );
      start(index);
    });
  };
  // It is looks that count, since a trainer that was stopped too (Ctrl-Z) has not seen the time go by.
  const timer = setInterval(() => {
    for (const [index, sampler] of samplers.entries()) {
      sampler.stopped = isStopped(sampler.child.pid!) ? sampler.stopped + 1 : 0;
      const isLate =
        sampler.ready && sampler.job !== undefined && Date.now() - sampler.began > 1000 * patience + TIMES * longest;
      if (sampler.stopped < patience && !isLate) continue;
      say(
        `sampler ${index} (process ${sampler.child.pid}) ${isLate ? 'does not answer' : `has been stopped (SIGSTOP) for ${patience} seconds`}: it is ended`,
      );
      sampler.child.kill('SIGKILL');
    }
  }, 1000);
  timer.unref();
  for (let index = 0; index < size; index++) start(index);

  return {
    publish: (weights) => writeWeights(folder, weights),
    tryStart: (job) => {
      const index = samplers.findIndex(
        (sampler) => sampler.ready && sampler.job === undefined && sampler.child.connected,
      );
      if (index < 0) return false;
      give(index, job);
      return true;
    },
    next: async () => {
      while (finished.length === 0) {
        if (failure) throw failure;
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      return finished.shift()!;
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
