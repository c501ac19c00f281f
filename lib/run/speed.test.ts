import { expect, it, vi } from 'vitest';
import { measureSpeed } from './speed.ts';

it('counts the tokens of a step, and divides them by the time of each part', () => {
  const now = vi.spyOn(performance, 'now').mockReturnValue(5000);
  const state = { counters: { tokens: 100 } };
  const completions = [{ completion: [1, 2, 3] }, { completion: new Array(17) }];
  expect(measureSpeed(state, completions, { began: 1000, sampled: 2000 })).toEqual({
    num_tokens: 120,
    step_time: 4,
    tokens_per_second: 5,
    rollout_tokens_per_second: 20,
    train_tokens_per_second: 20 / 3,
  });
  expect(state.counters.tokens).toBe(120);
  // What was sampled in vain took its time, and is no part of training.
  const inVain = [{ completion: new Array(80) }];
  expect(measureSpeed(state, completions, { began: 1000, sampled: 2000, inVain })).toEqual({
    num_tokens: 220,
    step_time: 4,
    tokens_per_second: 25,
    rollout_tokens_per_second: 100,
    train_tokens_per_second: 20 / 3,
  });
  now.mockRestore();
});
