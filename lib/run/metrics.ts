import { existsSync, readFileSync } from 'node:fs';
import { stringify } from 'csv-stringify/sync';
import { UserError } from '../errors.ts';
import { appendToFile, writeFileAtomically } from '../folders.ts';

/** One line of a log: the step that it belongs to, and anything else. Several lines may belong to one step. */
export type LogEntry = { step: number; [name: string]: unknown };

/** What is told of all that a run logs, when it is logged. */
export type Reporter = {
  /** a line of metrics.jsonl */
  log: (entry: LogEntry) => void;
  /** a text, in Markdown, under a name */
  text: (step: number, name: string, text: string) => void;
  /** waits until all has arrived; `isFinished`: whether the run has made all of its steps */
  close: (isFinished: boolean) => Promise<void>;
};

/** Adds lines to a JSONL file. NaN and ±Infinity, which JSON does not have, are written as null. */
export function appendEntries(file: string, entries: LogEntry[], options?: { create?: boolean }): void {
  appendToFile(file, entries.map((entry) => `${JSON.stringify(entry)}\n`).join(''), options);
}

/**
 * The complete lines of a JSONL file: a last line without its line break was torn, and is left out.
 * @returns text and value of every line; nothing if there is no such file
 * @throws {UserError} naming the line, if one is not a JSON object with a step
 */
function readLines(file: string): { text: string; entry: LogEntry }[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((text, i) => {
      try {
        const entry = JSON.parse(text);
        if (typeof entry?.step === 'number') return { text, entry };
      } catch {}
      throw new UserError(`${file}:${i + 1}: expected a JSON object with a "step", found ${text.slice(0, 40)}`);
    });
}

/** Takes back every line that belongs to a step after `step`, and a torn last line; warns if that was not after it. */
export function dropEntriesAfter(file: string, step: number): void {
  if (!existsSync(file)) return;
  const torn = /"step":(\d+)[^\n]*$/.exec(readFileSync(file, 'utf8'))?.[1];
  if (torn !== undefined && Number(torn) <= step) {
    console.warn(`${file} is damaged: its last line, of step ${torn}, is cut off and left out`);
  }
  const kept = readLines(file).filter(({ entry }) => entry.step <= step);
  const text = kept.map((line) => `${line.text}\n`).join('');
  if (text !== readFileSync(file, 'utf8')) writeFileAtomically(file, text);
}

/** Reads a JSONL log line by line. */
export const readEntries = (file: string): LogEntry[] => readLines(file).map(({ entry }) => entry);

/** Reads a JSONL log as one entry a step, in the order of the steps: lines of the same step are put together. */
export function readMetrics(file: string): LogEntry[] {
  const entries = new Map<number, LogEntry>();
  for (const { entry } of readLines(file)) entries.set(entry.step, { ...entries.get(entry.step), ...entry });
  return [...entries.values()].sort((a, b) => a.step - b.step);
}

/** Entries as CSV: a column for every name that occurs, an empty cell where an entry does not have it. */
export function toCsv(entries: LogEntry[]): string {
  return stringify(entries, { header: true, columns: [...new Set(entries.flatMap((entry) => Object.keys(entry)))] });
}
