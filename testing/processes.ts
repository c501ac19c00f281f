/** For tests that run scripts as a user does: processes, what they print, and what they leave in a run's folder. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll } from 'vitest';

export const REPOSITORY = join(import.meta.dirname, '..');
export const NODE = [process.execPath, '--import', 'tsx'];
export const TSX = [join(REPOSITORY, 'node_modules/.bin/tsx')];
/** What scripts are run on: the backend of the tests themselves. */
export const BACKEND = process.env.TFJS_BACKEND ?? 'wasm';

/** How often what must hold whatever the moment is tried. */
export const REPEATS = Number(process.env.REPEATS ?? 1);

/** What TensorFlow's newer libraries say at their start, whatever the log level. */
const NOISE = /^(WARNING: All log messages before absl|I\d{4} ).*\n/gm;

const running = new Set<ChildProcess>();
afterAll(() => {
  for (const { pid } of running) process.kill(-pid!, 'SIGKILL'); // only where a test has timed out
});

// Two scripts at a time, whatever the number of tests that run side by side.
let places = 2;
const queue: (() => void)[] = [];
async function place(): Promise<void> {
  if (places > 0) places--;
  else await new Promise<void>((resolve) => queue.push(resolve));
}
const leave = () => {
  const next = queue.shift();
  if (next) next();
  else places++;
};

export type Ended = { code: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string };

/** Meddles with a process while it runs. */
export type During = (child: ChildProcess, ended: () => boolean) => Promise<void>;

/** Runs a command in the repository to its end. */
export async function runProcess(
  [program, ...args]: string[],
  options: { env?: Record<string, string>; during?: During } = {},
): Promise<Ended> {
  await place();
  try {
    // A process group of its own, as a terminal gives it one.
    const env = { ...process.env, ...options.env };
    const child = spawn(program, args, { cwd: REPOSITORY, detached: true, env });
    let [stdout, stderr] = ['', ''];
    child.stdout.on('data', (data) => {
      stdout += data;
    });
    child.stderr.on('data', (data) => {
      stderr += data;
    });
    running.add(child);
    const closed = once(child, 'close').finally(() => running.delete(child));
    await options.during?.(child, () => child.exitCode !== null || child.signalCode !== null);
    const [code, signal] = await closed;
    return { code, signal, stdout, stderr: stderr.replace(NOISE, '') };
  } finally {
    leave();
  }
}

export const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** Waits for a condition, or for the end of the process. */
export async function until(condition: () => boolean, ended: () => boolean): Promise<void> {
  while (!condition() && !ended()) await sleep(1);
}

/** The lines of a JSONL file; none if there is no such file. */
export const jsonLines = (file: string): Record<string, unknown>[] =>
  (existsSync(file) ? readFileSync(file, 'utf8') : '')
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line));

/** The last step that a run has logged. */
export const lastStep = (folder: string) => Number(jsonLines(join(folder, 'metrics.jsonl')).at(-1)?.step ?? -1);

/** Whether a folder holds a file or folder with such a name. */
export const holds = (folder: string, pattern: RegExp) =>
  existsSync(folder) && readdirSync(folder).some((name) => pattern.test(name));

/** What a run leaves, timings aside, to the last bit. */
export function results(folder: string) {
  const metrics = jsonLines(join(folder, 'metrics.jsonl')).map(
    ({ step_time, tokens_per_second, rollout_tokens_per_second, train_tokens_per_second, ...row }) => row,
  );
  const model = ['model', 'adapter_model'].find((name) => existsSync(join(folder, `final_model/${name}.safetensors`)));
  return {
    metrics,
    completions: readFileSync(join(folder, 'completions.jsonl'), 'utf8'),
    weights: readFileSync(join(folder, `final_model/${model}.safetensors`), 'base64'),
  };
}
