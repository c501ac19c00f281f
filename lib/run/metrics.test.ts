import { appendFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { UserError } from '../errors.ts';
import { appendEntries, dropEntriesAfter, readMetrics, toCsv } from './metrics.ts';

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'metrics-'));
  file = join(folder, 'metrics.jsonl');
});
afterEach(() => rmSync(folder, { recursive: true }));

it('writes a JSON line an entry, with null for what JSON does not have', () => {
  appendEntries(file, [{ step: 1, loss: 0.5 }]);
  appendEntries(file, [
    { step: 2, loss: Number.NaN },
    { step: 3, loss: Number.NEGATIVE_INFINITY, note: 'a\nb' },
  ]);
  expect(readFileSync(file, 'utf8')).toBe(
    '{"step":1,"loss":0.5}\n{"step":2,"loss":null}\n{"step":3,"loss":null,"note":"a\\nb"}\n',
  );
});

it('takes back what came after a step, and a torn line, and leaves the rest byte for byte', () => {
  // Not as we would write it: 1.0 and the blank must survive.
  const kept = '{"step": 1, "loss": 1.0}\n{"step":2}\n{"step":2,"eval/accuracy":0.5}\n';
  appendFileSync(file, `${kept}{"step":3}\n{"step":4,"lo`);
  dropEntriesAfter(file, 2);
  expect(readFileSync(file, 'utf8')).toBe(kept);
  dropEntriesAfter(file, -1);
  expect(readFileSync(file, 'utf8')).toBe('');
  dropEntriesAfter(join(folder, 'absent.jsonl'), 2);
});

it('drops a torn line even of a step that is kept', () => {
  appendFileSync(file, '{"step":1}\n{"step":1,"x":2}');
  dropEntriesAfter(file, 5);
  expect(readFileSync(file, 'utf8')).toBe('{"step":1}\n');
});

it.each(['{"step":1', '[]', 'null', '{"loss":1}'])('names the line that is not an entry: %s', (line) => {
  appendFileSync(file, `{"step":0}\n${line}\n{"step":2}\n`);
  expect(() => readMetrics(file)).toThrow(UserError);
  expect(() => readMetrics(file)).toThrow(`${file}:2: expected a JSON object with a "step", found ${line}`);
});

it('puts the lines of one step together', () => {
  appendEntries(file, [
    { step: 0, 'eval/accuracy': 0.1 },
    { step: 1, reward: 0.5 },
    { step: 1, 'eval/accuracy': 0.2 },
  ]);
  expect(readMetrics(file)).toEqual([
    { step: 0, 'eval/accuracy': 0.1 },
    { step: 1, reward: 0.5, 'eval/accuracy': 0.2 },
  ]);
  expect(readMetrics(join(folder, 'absent.jsonl'))).toEqual([]);
});

it('gives CSV a column for every name', () => {
  expect(
    toCsv([
      { step: 0, accuracy: 0.1 },
      { step: 1, reward: null, note: 'a, "b"' },
    ]),
  ).toBe('step,accuracy,reward,note\n0,0.1,,\n1,,,"a, ""b"""\n');
});
