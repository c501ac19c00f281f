import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { type Dataset, type Row, readDataset } from './dataset.ts';

const temp = mkdtempSync(join(tmpdir(), 'dataset-'));
afterAll(() => rmSync(temp, { recursive: true }));
const file = (text: string): string => {
  const path = join(temp, `${text.length}.jsonl`);
  writeFileSync(path, text);
  return path;
};

const ROWS: Row[] = [{ prompt: 'Say yes', answer: 'yes' }, { prompt: [{ role: 'user', content: 'Say no' }] }];

it('reads lists, iterables, and files alike', async () => {
  async function* slowly() {
    yield* ROWS;
  }
  const expected = [
    { prompt: 'Say yes', columns: { answer: 'yes' }, source: 'x[0]' },
    { prompt: [{ role: 'user', content: 'Say no' }], columns: {}, source: 'x[1]' },
  ];
  for (const dataset of [ROWS, new Set(ROWS), slowly()]) expect(await readDataset(dataset, 'x')).toEqual(expected);
  const path = file(ROWS.map((row) => JSON.stringify(row)).join('\n'));
  expect(await readDataset(path, 'x')).toEqual(expected.map((row, i) => ({ ...row, source: `${path}:${i + 1}` })));
});

it.each([
  [[], /^x is empty: expected at least one \{ prompt, … \}$/],
  [
    [{ prompt: 'a' }, { question: 'b' }],
    /^x\[1\]: "prompt" must be a text or a list of \{ role, content \}, found null$/,
  ],
  [[{ prompt: '' }], /^x\[0\]: "prompt" must be a text .* found ""$/],
  [[{ prompt: [] }], /^x\[0\]: "prompt" must be .* found \[\]$/],
  [[{ prompt: [{ role: 'user' }] }], /^x\[0\]: "prompt" must be .* found \[\{"role":"user"\}\]$/],
  [[7], /^x\[0\]: expected an object with a "prompt", found 7$/],
  [7, /^x must be a list of \{ prompt, … \}, an iterable, or a JSONL file, found 7$/],
])('refuses %j', async (dataset, message) => {
  await expect(readDataset(dataset as Dataset, 'x')).rejects.toThrow(message);
});

it('names the line of a file', async () => {
  await expect(readDataset(file('{"prompt": "a"}\n{"prompt": 1}\n'), 'x')).rejects.toThrow(/:2: "prompt" must be/);
});
