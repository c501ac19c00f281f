import { expect, it } from 'vitest';
import { parseOptions } from '../lib/cli/options.ts';
import { uniform } from '../lib/random.ts';
import { model, PROBLEMS, tokenizer } from '../testing/policy.ts';
import { createCommand, type Draw, type Options, reward, rollout } from './train.ts';

const optionsOf = (...flags: string[]): Options => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);

it('the reward is a coin: 1 as often as it is said, whatever the completion', () => {
  const options = optionsOf('--reward-probability', '0.3');
  const coins = Array.from({ length: 10_000 }, (_, i) => uniform(0, i));
  const heads = coins.filter((coin) => reward(coin, options) === 1).length;
  expect(heads / coins.length).toBeCloseTo(0.3, 1);
  expect([0, 0.999].map((coin) => reward(coin, optionsOf('--reward-probability', '0')))).toEqual([0, 0]);
  expect([0, 0.999].map((coin) => reward(coin, optionsOf('--reward-probability', '1')))).toEqual([1, 1]);
});

it('each completion has a coin of its own, which its tokens do not share', async () => {
  const options = optionsOf('--num-generations', '64', '--max-new-tokens', '6');
  const asked: number[] = [];
  const draw: Draw = (problem, sample, position) => {
    asked.push(position);
    return uniform(0, 1, problem, sample, position);
  };
  const rollouts = await rollout(model, tokenizer, PROBLEMS, draw, options);
  const heads = rollouts.filter((row) => row.reward === 1).length;
  expect(heads).toBeGreaterThan(40); // of 128
  expect(heads).toBeLessThan(88);
  expect(asked.filter((position) => position === -1)).toHaveLength(128);
  const again = await rollout(model, tokenizer, PROBLEMS, draw, options);
  expect(again.map((row) => row.reward)).toEqual(rollouts.map((row) => row.reward));
});
