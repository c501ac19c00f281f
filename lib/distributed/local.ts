/** Ranks as processes of one machine, with nothing to install: a launcher starts them, adds what they send, and ends them. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { threadLimits } from '../backend/threads.ts';
import type { Rank } from './communicator.ts';

/** Milliseconds within which all that comes of one Ctrl-C arrives: signals, and messages about them. */
export const SAME_PRESS = 300;

/** A rank's pipe to the launcher, after stdin, stdout, stderr and Node's own channel. */
const PIPE = 4;

/** What a message asks for: it begins with one of these and the length of the bytes that follow. */
const SUM = 1;
const BROADCAST = 2;

/** What a rank that cannot go on tells the launcher, on Node's own channel. */
type Failure = { failed: string; exitCode: number };

/** Whether {@link launchRanks} has started this process. */
export const isLocalRank = (): boolean => process.env.GRPO_RANK !== undefined;

/** GPU for a rank of this machine: the one of that number among those that there are, and that the user allows. */
export function visibleDevice(localRank: number): string {
  const allowed = process.env.CUDA_VISIBLE_DEVICES;
  const devices = allowed === undefined ? presentDevices() : allowed.split(',');
  return devices.length > 0 ? devices[localRank % devices.length] : String(localRank);
}

/** Numbers of NVIDIA's GPUs, as Linux lists them; none on other systems. */
function presentDevices(): string[] {
  const names = existsSync('/dev') ? readdirSync('/dev') : [];
  return names.flatMap((name) => /^nvidia(\d+)$/.exec(name)?.[1] ?? []).sort((a, b) => Number(a) - Number(b));
}

/** Connects a process that {@link launchRanks} has started. */
export function connectLocal(): Rank {
  process.once('disconnect', () => process.exit(1)); // the launcher is gone, and this rank is of no use to anybody
  const pipe = new Socket({ fd: PIPE, readable: true, writable: true });
  const read = reader(pipe);
  const exchange = async (kind: number, bytes: Uint8Array, sends: boolean) => {
    pipe.write(bytesOf(Uint32Array.of(kind, bytes.length)));
    if (sends) pipe.write(bytes);
    // In place: the answer comes only after the launcher has read all that was sent.
    if (!(await read(bytes))) process.exit(1); // the launcher is gone
  };
  const rank = Number(process.env.GRPO_RANK);
  return {
    rank,
    size: Number(process.env.GRPO_SIZE),
    allReduceSum: (values) => exchange(SUM, bytesOf(values), true),
    broadcast: (bytes) => exchange(BROADCAST, bytes, rank === 0),
    barrier: () => exchange(SUM, new Uint8Array(4), true),
    close: async () => void pipe.end(),
    fail: async (failed, exitCode) => {
      process.send!({ failed, exitCode } satisfies Failure);
      await sleep(60_000); // until the launcher ends this process
    },
  };
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array | Uint32Array): Uint8Array =>
  new Uint8Array(buffer, byteOffset, byteLength);

/** Fills one target after the other from a pipe, whatever its chunks. Answers false where the pipe ends before. */
function reader(pipe: Socket): (target: Uint8Array) => Promise<boolean> {
  const chunks: Buffer[] = [];
  let fill = () => {};
  let ended = false;
  pipe.on('data', (chunk) => {
    chunks.push(chunk);
    fill();
  });
  pipe.on('close', () => {
    ended = true;
    fill();
  });
  pipe.on('error', () => {}); // 'close' follows
  return (target) =>
    new Promise((resolve) => {
      let filled = 0;
      fill = () => {
        while (filled < target.length && chunks.length > 0) {
          const part = chunks[0].subarray(0, target.length - filled);
          target.set(part, filled);
          filled += part.length;
          if (part.length === chunks[0].length) chunks.shift();
          else chunks[0] = chunks[0].subarray(part.length);
        }
        if (filled === target.length || ended) resolve(filled === target.length);
      };
      fill();
    });
}

/** Answers the calls of all ranks until they have closed their pipes. */
async function serve(pipes: Socket[]): Promise<void> {
  const readers = pipes.map(reader);
  const readAll = (targets: (Float32Array | Uint32Array)[]) =>
    Promise.all(readers.map((read, rank) => read(bytesOf(targets[rank]))));
  for (;;) {
    const calls = pipes.map(() => new Uint32Array(2));
    const alive = await readAll(calls);
    if (!alive.includes(true)) return;
    const [kind, length] = calls[0];
    if (alive.includes(false) || calls.some((call) => call[0] !== kind || call[1] !== length)) {
      throw new Error(`ranks made different calls: ${JSON.stringify(calls.map((call) => [...call]))}`);
    }
    let answer: Uint8Array = new Uint8Array(length);
    if (kind === BROADCAST) await readers[0](answer);
    else {
      const parts = pipes.map(() => new Float32Array(length / 4));
      await readAll(parts);
      // In the order of the ranks, not of their arrival: floating-point sums depend on it.
      for (const part of parts.slice(1)) for (let i = 0; i < part.length; i++) parts[0][i] += part[i];
      answer = bytesOf(parts[0]);
    }
    for (const pipe of pipes) pipe.write(answer);
  }
}

/**
 * Starts this script once for each rank, with the same arguments, and serves them. Each gets its share of the cores and,
 * where there are GPUs, one of its own. Rank 0 has the terminal. Where one fails, dies or is stopped, all are ended.
 * @param options.stopped - seconds for which a rank may be stopped
 * @returns when all have ended; the exit code is rank 0's, or that of the rank that failed, whose error is on stderr
 */
export async function launchRanks(size: number, { stopped: patience = 30 } = {}): Promise<void> {
  const ranks = Array.from({ length: size }, (_, rank) =>
    spawn(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
      stdio: [rank === 0 ? 'inherit' : 'ignore', 'inherit', 'inherit', 'ipc', 'pipe'],
      env: {
        ...process.env,
        ...threadLimits(size),
        ...{ CUDA_VISIBLE_DEVICES: visibleDevice(rank), GRPO_RANK: String(rank), GRPO_SIZE: String(size) },
      },
    }),
  );
  // A terminal sends Ctrl-C to the ranks as well. A message beside it does not count twice, and the others follow rank 0.
  // The second time they are to stop at once, also in the middle of a step that lets no signal through.
  let pressed = 0;
  let stopped = false;
  const passOn = () => {
    stopped ||= pressed > 0 && performance.now() - pressed > SAME_PRESS;
    if (stopped) for (const rank of ranks) rank.kill('SIGKILL');
    else if (ranks[0].connected) ranks[0].send('SIGINT', () => {}); // it may have ended just now
    pressed ||= performance.now();
  };
  for (const signal of ['SIGINT', 'SIGTERM', 'message']) process.on(signal, passOn);
  // What started this process is gone. That counts as Ctrl-C the first time, but never as the second.
  process.on('disconnect', () => pressed > 0 || passOn());
  process.channel?.unref(); // listening for messages must not keep this process alive
  const failure = await untilAllEnd(ranks, patience);
  for (const rank of ranks) rank.kill('SIGKILL');
  if (failure?.failed && !stopped) console.error(`error: ${failure.failed}`);
  process.exitCode = stopped ? 130 : (failure?.exitCode ?? ranks[0].exitCode ?? 1);
}

/** Waits for the end of all ranks, or the failure of one; to be stopped for `patience` seconds is one. */
function untilAllEnd(ranks: ChildProcess[], patience: number): Promise<Failure | undefined> {
  return new Promise((resolve) => {
    const failures: Failure[] = [];
    let left = ranks.length;
    const fail = (rank: number, failure: Failure) => {
      failures[rank] ??= failure;
      // The same mistake stops all of them: a moment later the lowest that says so is always the same one.
      setTimeout(() => resolve(failures.find(Boolean)), 300);
    };
    for (const [rank, child] of ranks.entries()) {
      child.on('message', (failure) => fail(rank, failure as Failure));
      child.on('exit', (code, signal) => {
        if (code === null || ![0, 130].includes(code)) fail(rank, ending(rank, code, signal));
        left--;
        if (left === 0 && failures.length === 0) resolve(undefined);
      });
    }
    watchStopped(ranks, patience, (rank, pid) =>
      fail(rank, {
        failed: `rank ${rank} (process ${pid}) has been stopped (SIGSTOP) for ${patience} seconds, so all ranks were ended: --resume and the run's folder continue it`,
        exitCode: 1,
      }),
    );
    serve(ranks.map((child) => child.stdio[PIPE] as Socket)).catch((error: Error) =>
      fail(ranks.length, { failed: error.message, exitCode: 1 }),
    );
  });
}

/**
 * Looks once a second for a rank that was stopped: all others wait for it, and could not say for what. How long a rank
 * computes says nothing. It is looks that count, since a launcher that was stopped too (Ctrl-Z) has not seen the time go by.
 */
function watchStopped(ranks: ChildProcess[], patience: number, found: (rank: number, pid: number) => void): void {
  const looks = ranks.map(() => 0);
  const timer = setInterval(() => {
    for (const [rank, { pid }] of ranks.entries()) {
      looks[rank] = isStopped(pid!) ? looks[rank] + 1 : 0;
      if (looks[rank] === patience) found(rank, pid!);
    }
  }, 1000);
  timer.unref(); // it is the ranks that keep the launcher alive
}

export function isStopped(pid: number): boolean {
  try {
    return /^State:\s*T/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    if (process.platform !== 'darwin') return false;
    return String(spawnSync('ps', ['-o', 'stat=', '-p', String(pid)]).stdout).startsWith('T');
  }
}

function ending(rank: number, code: number | null, signal: NodeJS.Signals | null): Failure {
  // Ctrl-C a second time: nobody needs to be told.
  if (rank === 0 && (signal === 'SIGINT' || signal === 'SIGTERM')) return { failed: '', exitCode: 130 };
  const how = signal ? `was ended by ${signal}` : `ended with exit code ${code}`;
  return {
    failed: `rank ${rank} ${how}, so all ranks were stopped: --resume and the run's folder continue it`,
    exitCode: 1,
  };
}
