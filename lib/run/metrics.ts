import { existsSync, readFileSync } from 'node:fs';
import { stringify } from 'csv-stringify/sync';
import { UserError } from '../errors.ts';
import { appendToFile, writeFileAtomically } from '../folders.ts';

/** One line of a log: the step that it belongs to, and anything else. Several lines may belong to one step. */
export type Row = { step: number; [name: string]: unknown };

/** Adds lines to a JSONL file. NaN and ±Infinity, which JSON does not have, are written as null. */
export function appendRows(file: string, rows: Row[], options?: { create?: boolean }): void {
  appendToFile(file, rows.map((row) => `${JSON.stringify(row)}\n`).join(''), options);
}

/**
 * The complete lines of a JSONL file: a last line without its line break was torn, and is left out.
 * @returns text and value of every line; nothing if there is no such file
 * @throws {UserError} naming the line, if one is not a JSON object with a step
 */
function readLines(file: string): { text: string; row: Row }[] {
  if (!existsSync(file)) return [];
  return readFileSync(file, 'utf8')
    .split('\n')
    .slice(0, -1)
    .map((text, i) => {
      try {
        const row = JSON.parse(text);
        if (typeof row?.step === 'number') return { text, row };
      } catch {}
      throw new UserError(`${file}:${i + 1}: expected a JSON object with a "step", found ${text.slice(0, 40)}`);
    });
}

/** Takes back every line that belongs to a step after `step`, and a torn last line. */
export function dropRowsAfter(file: string, step: number): void {
  if (!existsSync(file)) return;
  const kept = readLines(file).filter(({ row }) => row.step <= step);
  const text = kept.map((line) => `${line.text}\n`).join('');
  if (text !== readFileSync(file, 'utf8')) writeFileAtomically(file, text);
}

/** Reads a JSONL log as one row a step, in the order of the steps: lines of the same step are put together. */
export function readMetrics(file: string): Row[] {
  const rows = new Map<number, Row>();
  for (const { row } of readLines(file)) rows.set(row.step, { ...rows.get(row.step), ...row });
  return [...rows.values()].sort((a, b) => a.step - b.step);
}

/** Rows as CSV: a column for every name that occurs, an empty cell where a row does not have it. */
export function toCsv(rows: Row[]): string {
  return stringify(rows, { header: true, columns: [...new Set(rows.flatMap((row) => Object.keys(row)))] });
}
