import { constants } from 'node:buffer';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { UserError } from '../errors.ts';
import { readJsonLines } from './json_lines.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lines-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function write(bytes: string | Buffer, name = 'data.jsonl'): string {
  writeFileSync(join(folder, name), bytes);
  return join(folder, name);
}
const read = (file: string) => readJsonLines(file, (object) => object);

/** The one-line message of the UserError that is thrown. */
function mistake(file: string): string {
  try {
    read(file);
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

describe('readJsonLines', () => {
  it('reads a list as well, over however many lines, and a file with a BOM', () => {
    const file = write(`\uFEFF${JSON.stringify([{ a: 1 }, { a: 2 }], null, 2)}\n`, 'list.json');
    expect(read(file)).toEqual([
      { a: 1, source: `${file}, item 1` },
      { a: 2, source: `${file}, item 2` },
    ]);
    const lines = write('\uFEFF{"a": 1}\r\n\r\n{"a": 2}');
    expect(read(lines)).toEqual([
      { a: 1, source: `${lines}:1` },
      { a: 2, source: `${lines}:3` },
    ]);
  });

  it.each([
    [
      'an object over several lines',
      JSON.stringify({ a: 1 }, null, 2),
      /:1: not valid JSON: .*one JSON object a line.*jq -c \. /,
    ],
    ['a table', 'question,answer\n1+1,2\n', /:1: not valid JSON: .*; expected one JSON object a line, or one list/],
    [
      'a list that breaks off',
      '[{"a": 1},\n',
      /data.jsonl: not valid JSON: .*; expected one JSON object a line, or one/,
    ],
    ['lists as lines', '[1]\n[2]\n', /data.jsonl: not valid JSON: .*; expected one JSON object a line, or one list/],
    ['a number', '{"a": 1}\n3\n', /:2: expected a JSON object, found 3$/],
    ['a line that breaks off', '{"a": 1}\n{"a":', /:2: not valid JSON: [^;]*$/],
    ['nothing', ' \n', /data.jsonl is empty: expected one JSON object a line/],
    ['an empty list', '[]', /data.jsonl is empty: expected one JSON object a line/],
  ])('refuses %s', (_, text, message) => expect(mistake(write(text))).toMatch(message));

  it.each([
    [
      'Latin-1',
      Buffer.concat([Buffer.from('{"a": 1}\n{"a": "S'), Buffer.from([0xe3]), Buffer.from('o"}\n{"a": 2}')]),
      2,
    ],
    ['half a letter at the end', Buffer.concat([Buffer.from('{"a": 1}\n\n'), Buffer.from([0xc3])]), 3],
    ['UTF-16', Buffer.from('\uFEFF{"a": 1}', 'utf16le'), 1],
  ])('names the line that is not UTF-8: %s', (_, bytes, line) => {
    const file = write(bytes);
    expect(mistake(file)).toBe(`${file}:${line}: this is not text in UTF-8: save the file as UTF-8`);
  });

  it('says so when a file is too long for a text', () => {
    const file = write('');
    truncateSync(file, constants.MAX_STRING_LENGTH + 1); // a hole: it takes no room on the disk
    expect(mistake(file)).toMatch(/data.jsonl has 537 MB, more than the 537 MB that can be read: take a part of it/);
  });

  it('takes numbers that doubles cannot hold as their text, and nothing else', () => {
    const line = String.raw`{"9007199254740993": "1e400 \" 9007199254740993", "a": 9007199254740993, "b": [1e400, -1E-400], "c": 12e2, "d": 0.1, "e": 9007199254740992, "f": 3.14159265358979323846, "g": 0.30000000000000004, "h": 1.0000000000000000e-05}`;
    const expected = {
      '9007199254740993': '1e400 " 9007199254740993',
      ...{ a: '9007199254740993', b: ['1e400', '-1E-400'], c: 1200, d: 0.1, e: 9007199254740992 },
      ...{ f: '3.14159265358979323846', g: 0.30000000000000004, h: 1e-5 },
    };
    expect(read(write(line))).toEqual([{ ...expected, source: expect.anything() }]);
    expect(mistake(write('{1e400: 1}'))).toMatch(/not valid JSON/);
  });
});

it('reads a text of millions of quotes beside a number that it looks at twice', () => {
  const text = '"'.repeat(3_000_000);
  expect(read(write(`${JSON.stringify({ text, rate: 1e-7 })}\n`))[0]).toMatchObject({ rate: 1e-7 });
});
