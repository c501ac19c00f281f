import { MultiBar } from 'cli-progress';
import { beginning } from '../text.ts';

/** Milliseconds after which a line is due, however few steps were made. */
const LONG_SILENCE = 30_000;

/** What {@link progress} gives. */
export type Progress = {
  /** `step` steps are done; `fields` are shown in their order, as `reward 0.53`. */
  update: (step: number, fields: Record<string, string>) => void;
  /** What goes on between two steps, and takes its time: on a terminal at once, otherwise a line now and then. */
  note: (text: string) => void;
  /** Prints a line above the bar. */
  log: (line: string) => void;
  /** Leaves the bar as it is. Call it in a `finally`: the bar's timer keeps the process alive. */
  stop: () => void;
};

/**
 * Shows how far a run is: on a terminal as a bar, otherwise (in a file, a pipe, a notebook) as plain lines.
 * @param options.total - the number of the last step; 0 where there are no steps, only notes
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
  let began = performance.now();
  const timeLeft = (step: number) => {
    // What goes on before the first step says nothing of how long steps take.
    if (step === start) began = performance.now();
    else if (step < total) return `${duration(remaining(began, (step - start) / (total - start)))} left`;
    return '';
  };
  const options = { total, start, every, stream };
  return stream.isTTY ? showBar(timeLeft, options) : printLines(timeLeft, options);
}

/** Seconds that what `began` (by performance.now) will still take, when a share of it is done. */
export const remaining = (began: number, share: number): number =>
  ((performance.now() - began) / 1000) * (1 / share - 1);

type TimeLeft = (step: number) => string;
type Shown = { total: number; start: number; every: number; stream: NodeJS.WriteStream };

const join = (...parts: string[]): string => parts.filter(Boolean).join(' · ');
const inFull = (fields: Record<string, string>) => Object.entries(fields).map(([name, value]) => `${name} ${value}`);
/** Values first, with the last word of their labels: what a narrow terminal cuts off is the least. */
const inBrief = (fields: Record<string, string>) =>
  Object.entries(fields).map(([name, value]) => `${value} ${name.split(' ').at(-1)}`);

function printLines(timeLeft: TimeLeft, { total, start, every, stream }: Shown): Progress {
  let current = start;
  let first = true;
  let printed = performance.now();
  const isSilent = () => performance.now() - printed > LONG_SILENCE;
  const print = (...parts: string[]) => {
    printed = performance.now();
    stream.write(`${join(total > 0 ? `step ${current}/${total}` : '', ...parts)}\n`);
  };
  return {
    update: (step, fields) => {
      current = step;
      const left = timeLeft(step);
      if (!first && step < total && step % every !== 0 && !isSilent()) return;
      print(...inFull(fields), left);
      first = step === start;
    },
    note: (text) => {
      timeLeft(current);
      if (isSilent()) print(text);
    },
    log: (line) => void stream.write(`${line}\n`),
    stop: () => {},
  };
}

/** The widest bar, in characters, and the narrowest that says anything. */
const [WIDE, NARROW] = [20, 5];

function showBar(timeLeft: TimeLeft, { total, start, stream }: Shown): Progress {
  // A line that wraps cannot be redrawn in place.
  const room = () => (stream.columns || 80) - 1;
  const bars = new MultiBar({
    stream,
    format: (_, { progress }, { text }: { text: string }) => {
      const size = total > 0 ? Math.min(WIDE, room() - text.length - 1) : 0;
      if (size < NARROW) return beginning(text, room());
      const done = Math.round(progress * size);
      return `${'█'.repeat(done)}${'░'.repeat(size - done)} ${text}`;
    },
    hideCursor: false, // a process that is killed could not undo this,
    linewrap: true, // nor this
    gracefulExit: false, // Ctrl-C is not the bar's business
    forceRedraw: true, // a log line has taken the bar's place
  });
  const count = (step: number) => (total > 0 ? `${step}/${total}` : '');
  const bar = bars.create(total, start, { text: count(start) });
  let current = start;
  let stopped = false;
  const show = (step: number, text: string) => {
    if (stopped) return;
    current = step;
    bar.update(step, { text });
    // Steps block the event loop, so the bar's own timer comes too late.
    bars.update();
  };
  return {
    update: (step, fields) => {
      const left = timeLeft(step);
      const full = join(count(step), ...inFull(fields), left);
      show(step, full.length + 1 + WIDE <= room() ? full : join(count(step), ...inBrief(fields), left));
    },
    note: (text) => {
      timeLeft(current);
      show(current, join(count(current), text));
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

/** Three digits are enough to see where it goes; whole numbers stay whole. */
export const briefly = (value: unknown): string =>
  typeof value !== 'number' || Number.isNaN(value)
    ? '–'
    : value >= 100
      ? value.toFixed(0)
      : String(Number(value.toPrecision(3)));
