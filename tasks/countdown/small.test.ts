import { expect, it } from 'vitest';
import { calculate } from '../../lib/environments/arithmetic.ts';
import { equationVerdict } from './score.ts';
import { smallCountdowns, task, triesOf } from './small.ts';

it('all that can be made of three numbers in two steps is tried, and is what it says', () => {
  const tries = triesOf([2, 3, 5]);
  expect(tries).toHaveLength(27);
  expect(tries.map(({ text }) => text)).toContain('(5+3)*2');
  for (const { text, value, steps } of tries) {
    expect(calculate(text)).toMatchObject({ ok: true, text: String(value) });
    expect(equationVerdict(`<answer>${text}</answer>`, { numbers: [2, 3, 5], target: value })).toBe('right');
    expect(steps.at(-1)!.split('=')[1]).toBe(String(value));
  }
  expect(triesOf([12, 12, 12]).some(({ value }) => value > 99 || value < 0)).toBe(false);
});

it('held-out countdowns are none of those to train on, and all can be solved', async () => {
  const { train, test } = smallCountdowns();
  expect([train.length, test.length]).toEqual([2000, 200]);
  const questions = (await task.load({ seed: 0 })) as { train: { question: string }[]; test: { question: string }[] };
  const all = [...questions.train, ...questions.test].map(({ question }) => question);
  expect(new Set(all).size).toBe(2200);
  for (const { numbers, target } of test) expect(triesOf(numbers).some(({ value }) => value === target)).toBe(true);
});
