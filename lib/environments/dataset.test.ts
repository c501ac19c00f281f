import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { sameAnswer } from './answers.ts';
import { type ColumnNames, loadProblems, loadSplits } from './dataset.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'data-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function write(text: string): string {
  writeFileSync(join(folder, 'data.jsonl'), text);
  return join(folder, 'data.jsonl');
}
const answerIn = (json: string) => loadProblems(write(`{"question": "1+1", "answer": ${json}}`))[0].answer;

describe('loadProblems', () => {
  it.each([
    ['2', '2'],
    ['9007199254740993', '9007199254740993'],
    ['1e400', '1e400'],
    ['" Paris\\n"', 'Paris'],
    ['"48/2 = <<48/2=24>>24\\n24+48 = 72\\n#### 72"', '72'],
    ['"#### 1,234\\n"', '1,234'],
    ['"C# or ####"', 'C# or ####'],
  ])('the answer of %s is %s', (json, answer) => expect(answerIn(json)).toBe(answer));

  it.each([
    ['""', /data.jsonl:1: "answer" must not be empty, also after "####", found ""$/],
    ['" \\n"', /:1: "answer" must not be empty, also after "####", found " \\n"$/],
    ['"so\\n#### "', /:1: "answer" must not be empty, also after "####", found /],
    [
      '"so\\n72"',
      /:1: "answer" must be the final answer alone, on one line, found "so\\n72": .*--answer-column.*#### 72/,
    ],
    ['"#### 72\\nor so"', /:1: "answer" must be the final answer alone/],
    ['true', /:1: "answer" must be a text or a number, found true$/],
  ])('an answer of %s is refused', (json, message) => expect(() => answerIn(json)).toThrow(message));

  it('takes the columns that are named, and keeps all', () => {
    const file = write('{"problem": "1+1", "solution": 2, "level": 5}\n');
    const names = { questionColumn: 'problem', answerColumn: 'solution' };
    const problems = [
      { question: '1+1', answer: '2', columns: { problem: '1+1', solution: 2, level: 5 }, source: `${file}:1` },
    ];
    expect(loadProblems(file, names)).toEqual(problems);
    const asked = loadSplits(
      loadProblems,
      { dataset: file, evalDataset: file, evalSize: 1, seed: 0, ...names },
      BUNDLED,
    );
    expect(asked).toEqual({ train: problems, test: problems });
  });

  it('says how many are held out where there are fewer than asked for', () => {
    const log = vi.spyOn(console, 'log').mockImplementation(() => {});
    const file = write('{"question": "1+1", "answer": 2}\n'.repeat(3));
    const held = (evalSize: number) =>
      loadSplits(loadProblems, { dataset: file, evalDataset: file, evalSize, seed: 0 }, BUNDLED).test.length;
    try {
      expect([held(2), held(3)]).toEqual([2, 3]);
      expect(log).not.toHaveBeenCalled();
      expect(held(1000)).toBe(3);
      expect(log.mock.calls).toEqual([[`--eval-size 1000: ${file} has 3, all are asked`]]);
    } finally {
      log.mockRestore();
    }
  });

  it.each<[ColumnNames, string]>([
    [
      {},
      '"question" must be a text, found nothing: name one of the columns ["problem","solution"] with --question-column',
    ],
    [
      { questionColumn: 'problem' },
      '"answer" must be a text or a number, found nothing: name one of the columns ["problem","solution"] with --answer-column',
    ],
  ])('names the columns where one is missing (%o)', (names, message) => {
    const file = write('{"problem": "1+1", "solution": 2}');
    expect(() => loadProblems(file, names)).toThrow(new UserError(`${file}:1: ${message}`));
  });

  const gsm8k = join(import.meta.dirname, '../../../shared/data/gsm8k');
  it.skipIf(!existsSync(gsm8k))("reads GSM8K's own files (skipped where ../shared is absent)", () => {
    const [train, test] = ['train', 'test'].map((name) => loadProblems(join(gsm8k, `${name}.jsonl`)));
    expect([train.length, test.length, train[0].answer, test[0].answer]).toEqual([7473, 1319, '72', '18']);
    for (const { answer } of [...train, ...test]) {
      expect(answer).toMatch(/^-?[\d,.]+$/);
      expect(sameAnswer(`$${Number(answer.replaceAll(',', ''))}.00`, answer)).toBe(true);
    }
  });
});

const BUNDLED = { train: '', test: '' };
