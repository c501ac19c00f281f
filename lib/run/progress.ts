import { MultiBar } from 'cli-progress';

/** Milliseconds after which a line is due, however few steps were made. */
const LONG_SILENCE = 30_000;

/** What {@link progress} gives. */
export type Progress = {
  /** `step` steps are done; `fields` are shown in their order, as `reward 0.53`. */
  update: (step: number, fields: Record<string, string>) => void;
  /** Prints a line above the bar. */
  log: (line: string) => void;
  /** Leaves the bar as it is. Call it in a `finally`: the bar's timer keeps the process alive. */
  stop: () => void;
};

/**
 * Shows how far a run is: on a terminal as a bar, otherwise (in a file, a pipe, a notebook) as plain lines.
 * @param options.total - the number of the last step
 * @param options.start - the step that this process starts from; only steps of this process tell the time left
 * @param options.every - without a terminal, print every so many steps; the first and the last are always printed
 * @param options.stream - where to
 */
export function progress({
  total,
  start = 0,
  every = 1,
  stream = process.stdout,
}: {
  total: number;
  start?: number;
  every?: number;
  stream?: NodeJS.WriteStream;
}): Progress {
  const began = performance.now();
  const describe = (step: number, fields: Record<string, string>) => {
    const done = step - start;
    const left = done > 0 ? ((performance.now() - began) / 1000 / done) * (total - step) : undefined;
    const shown = Object.entries(fields).map(([name, value]) => `${name} ${value}`);
    return [...shown, left === undefined || step >= total ? '' : `${duration(left)} left`].filter(Boolean).join(' · ');
  };
  const options = { total, start, every, stream };
  return stream.isTTY ? showBar(describe, options) : printLines(describe, options);
}

type Describe = (step: number, fields: Record<string, string>) => string;
type Shown = { total: number; start: number; every: number; stream: NodeJS.WriteStream };

function printLines(describe: Describe, { total, every, stream }: Shown): Progress {
  let first = true;
  let printed = performance.now();
  return {
    update: (step, fields) => {
      const slow = performance.now() - printed > LONG_SILENCE;
      if (!first && step < total && step % every !== 0 && !slow) return;
      printed = performance.now();
      stream.write(`step ${step}/${total} · ${describe(step, fields)}\n`);
      first = false;
    },
    log: (line) => void stream.write(`${line}\n`),
    stop: () => {},
  };
}

function showBar(describe: Describe, { total, start, stream }: Shown): Progress {
  const bars = new MultiBar({
    stream,
    format: '{bar} {value}/{total}{text}',
    barsize: 20,
    barCompleteChar: '█',
    barIncompleteChar: '░',
    hideCursor: false, // a process that is killed could not undo this,
    linewrap: true, // nor this
    gracefulExit: false, // Ctrl-C is not the bar's business
    forceRedraw: true, // a log line has taken the bar's place
  });
  const bar = bars.create(total, start, { text: '' });
  let stopped = false;
  return {
    update: (step, fields) => {
      if (stopped) return;
      // A line that wraps cannot be redrawn in place.
      const room = Math.max(0, (stream.columns || 80) - 24 - 2 * String(total).length);
      bar.update(step, { text: ` · ${describe(step, fields)}`.slice(0, room) });
      // Steps block the event loop, so the bar's own timer comes too late.
      bars.update();
    },
    log: (line) => {
      if (stopped) stream.write(`${line}\n`);
      else {
        bars.log(`${line}\n`);
        bars.update();
      }
    },
    stop: () => {
      if (!stopped) bars.stop();
      stopped = true;
    },
  };
}

/** Seconds as `45s`, `3m 05s` or `2h 10m`. */
export function duration(seconds: number): string {
  const s = Math.round(seconds);
  const two = (n: number) => String(n).padStart(2, '0');
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  return `${Math.floor(s / 3600)}h ${two(Math.floor((s % 3600) / 60))}m`;
}
