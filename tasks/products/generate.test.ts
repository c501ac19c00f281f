import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { calculate } from '../../lib/environments/arithmetic.ts';
import { taskProducts } from './generate.ts';

const lines = (split: string): { question: string; answer: number }[] =>
  readFileSync(`tasks/products/${split}.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

describe("the calculator's task", () => {
  it('is what its script generates', () => {
    const { train, test } = taskProducts();
    expect(lines('train')).toEqual(train.map(({ text, value }) => ({ question: text, answer: value })));
    expect(lines('test')).toEqual(test.map(({ text, value }) => ({ question: text, answer: value })));
  });

  it('asks no held-out question in training, and none twice', () => {
    const all = [...lines('train'), ...lines('test')].map(({ question }) => question);
    expect(new Set(all).size).toBe(4200);
  });

  it('has answers that the calculator gives, none of them small', () => {
    for (const { question, answer } of [...lines('train'), ...lines('test')]) {
      expect(calculate(question)).toEqual({ ok: true, text: `${answer}` });
      expect(answer).toBeGreaterThanOrEqual(1000);
    }
  });
});
