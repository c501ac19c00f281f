import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { drawSum, needsCarry, sumText, taskSums } from './generate.ts';

const lines = (split: string) => readFileSync(`tasks/sums/${split}.jsonl`, 'utf8').trim().split('\n');
const question = (line: string): string => JSON.parse(line).question;

describe('the sums task', () => {
  it('is what its script generates', () => {
    const { train, test } = taskSums();
    expect(lines('train').map(question)).toEqual(train.map(sumText));
    expect(lines('test').map(question)).toEqual(test.map(sumText));
  });

  it('asks no held-out question in training, and none twice', () => {
    const all = [...lines('train'), ...lines('test')].map(question);
    expect(new Set(all).size).toBe(4500);
  });

  it('has the right answers, from 0 to 99 all the way', () => {
    for (const line of [...lines('train'), ...lines('test')]) {
      const { question, answer } = JSON.parse(line);
      const terms = [...question.matchAll(/[+-]?\d+/g)].map(([term]) => Number(term));
      const values = terms.map((_, i) => terms.slice(0, i + 1).reduce((a, b) => a + b));
      expect(answer).toBe(values.at(-1));
      expect(values.every((value) => value >= 0 && value <= 99)).toBe(true);
    }
  });

  it.each([
    [[47, 38], true],
    [[41, 38], false],
    [[85, -9], true],
    [[89, -9], false],
    [[41, 38, -10], false],
    [[41, 38, 1], true],
    [[10, -10, 5], false],
  ])('%j needs a carry or a borrow: %s', (terms, carries) => expect(needsCarry(terms)).toBe(carries));

  it('draws a sum for any random numbers', () => {
    let draws = 0;
    expect(drawSum(() => (draws++ % 7) / 7).length).toBeGreaterThan(1);
  });
});
