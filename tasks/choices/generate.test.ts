import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { taskChoices } from './generate.ts';

const lines = (split: string): { question: string; answer: number }[] =>
  readFileSync(`tasks/choices/${split}.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

describe('the choices task', () => {
  it('is what its script generates', () => {
    const { train, test } = taskChoices();
    expect(lines('train').map(({ question }) => question)).toEqual(train.map(({ text }) => text));
    expect(lines('test').map(({ question }) => question)).toEqual(test.map(({ text }) => text));
  });

  it('asks no held-out sum in training, and none twice', () => {
    const sums = [...lines('train'), ...lines('test')].map(({ question }) => question.split(':')[0]);
    expect(new Set(sums).size).toBe(2200);
  });

  it('has the right result and one other to choose from, as often first as second, as often higher as lower', () => {
    const all = [...lines('train'), ...lines('test')];
    const places = all.map(({ question, answer }) => {
      const [sum, results] = question.split(':');
      expect([...sum.matchAll(/[+-]?\d+/g)].reduce((value, [term]) => value + Number(term), 0)).toBe(answer);
      const [first, second] = results.split(',').map(Number);
      expect([first, second]).toContain(answer);
      expect(Math.abs(first - second)).toBe(10);
      return { first: first === answer, higher: Math.max(first, second) === answer };
    });
    for (const place of ['first', 'higher'] as const) {
      expect(places.filter((found) => found[place]).length / all.length).toBeCloseTo(0.5, 1);
    }
  });
});
