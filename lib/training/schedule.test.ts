import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { type Schedule, scheduleFactor } from './schedule.ts';

const oracle = JSON.parse(readFileSync('lib/training/fixtures/lr_schedules.json', 'utf8')) as Record<string, number[]>;

test.each<[Schedule, string]>([
  ['constant', 'constant_w10'],
  ['linear', 'linear_w10_t50'],
  ['cosine', 'cosine_w10_t50'],
])('%s is exactly that of transformers, from the first update to beyond the last', (schedule, name) => {
  const factors = oracle[name].map((_, step) => 1e-3 * scheduleFactor(schedule, step, { warmup: 10, total: 50 }));
  factors.forEach((rate, step) => void expect(Math.abs(rate - oracle[name][step])).toBeLessThan(1e-18));
});

test('without warm-up the first update has the full rate', () => {
  for (const schedule of ['constant', 'linear', 'cosine'] as const) {
    expect(scheduleFactor(schedule, 0, { warmup: 0, total: 20 })).toBe(1);
  }
});
