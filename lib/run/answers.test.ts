import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { exactMatch, normalizeAnswer, sameAnswer } from './answers.ts';

describe('sameAnswer', () => {
  it.each([
    ['4', '4.0', true],
    ['4.0', '4', true],
    [' 4 ', '4', true],
    ['-4', '4', false],
    ['+4', '4', true],
    ['007', '7', true],
    ['1,000', '1000', true],
    ['1000', '1,000', true],
    ['1,234,567', '1234567', true],
    ['1,5', '15', false],
    ['0.1', '0.10000000001', true],
    ['0.1', '0.101', false],
    ['4', '5', false],
    ['', '0', false],
    [' ', '0', false],
    ['NaN', '4', false],
    ['NaN', 'NaN', true],
    ['Infinity', '4', false],
    ['9'.repeat(400), '4', false],
    ['123456', '123457', false],
    ['Paris', 'Paris', true],
    [' Paris\n', 'Paris', true],
    ['Rome', 'Paris', false],
    ['4', 'four', false],
    ['', 'Paris', false],
  ])('%j and %j: %s', (given, expected, same) => {
    expect(sameAnswer(given, expected)).toBe(same);
  });

  it.each([
    ['10000000001', '10000000002', false],
    ['Infinity', 'Infinity', true],
    ['4', 'Infinity', false],
    ['4', '1e999', false],
    ['9007199254740993', '9007199254740992', false],
  ])('of huge numbers %j and %j: %s', (given, expected, same) => {
    expect(sameAnswer(given, expected)).toBe(same);
  });
});

describe('exact match', () => {
  it.each([
    ['The Silver  Lantern.', 'silver lantern'],
    ['an "A" and the B!', 'and b'],
    ['theatre', 'theatre'],
    ['U.S.', 'us'],
    ['  ', ''],
    ['Āthe é', 'āthe é'],
  ])('%j is %j', (text, normalized) => expect(normalizeAnswer(text)).toBe(normalized));

  it('is enough with one of the expected answers', () => {
    expect(exactMatch('the yes', ['no', 'Yes'])).toBe(true);
    expect(exactMatch('yes and no', ['no', 'yes'])).toBe(false);
  });

  const file = join(import.meta.dirname, '../../../shared/oracles/grpo/qa_em.json');
  it.skipIf(!existsSync(file))("agrees with Search-R1's in all cases (skipped where ../shared is absent)", () => {
    type Check = { prediction: string; targets: string[]; normalized: string; em: number };
    const { checks }: { checks: Check[] } = JSON.parse(readFileSync(file, 'utf8'));
    expect(checks).toHaveLength(500);
    for (const { prediction, targets, normalized, em } of checks) {
      expect(normalizeAnswer(prediction), prediction).toBe(normalized);
      expect(Number(exactMatch(prediction, targets)), prediction).toBe(em);
    }
  });
});
