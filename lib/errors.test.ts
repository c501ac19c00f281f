import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { mistakeIn, UserError } from './errors.ts';
import { quoted } from './text.ts';

it('a mistake is one line, whatever it quotes', () => {
  expect(mistakeIn(new UserError('no folder a\nb\r\x1b[31m\u2028c'))).toBe(
    'no folder a\\u000ab\\u000d\\u001b[31m\\u2028c',
  );
});

it('a long mistake keeps its beginning and what it advises, within 500 characters', () => {
  const text = mistakeIn(new UserError(`no model ${'😀'.repeat(1000)}: name another one`))!;
  expect(text).toMatch(/^no model (😀)+…(😀)+: name another one$/u);
  expect(text.length).toBeGreaterThan(490);
  expect(text.length).toBeLessThanOrEqual(500);
});

it('what the system refuses is a mistake, a bug is none', () => {
  expect(() => readFileSync('/nowhere')).toThrow();
  try {
    readFileSync('/nowhere');
  } catch (error) {
    expect(mistakeIn(error)).toBe("ENOENT: no such file or directory, open '/nowhere'");
  }
  expect(mistakeIn(new TypeError('x'))).toBeUndefined();
});

it.each([
  ['runs/x/2026-01-31_14-05-09', 'runs/x/2026-01-31_14-05-09'],
  ['my runs/a', "'my runs/a'"],
  ["it's", "'it'\\''s'"],
  ['', "''"],
])('a shell reads %j from %s', (text, expected) => {
  expect(quoted(text)).toBe(expected);
});
