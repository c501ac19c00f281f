import { describe, expect, it } from 'vitest';
import { callRewards, namesOf, type RewardFunction, type RewardInputs } from './rewards.ts';

const INPUTS: RewardInputs = {
  ...{ prompts: ['1+1', '1+1', '2+2'], completions: ['2', '3', '4'], calls: [], completionIds: [[5], [6], [7]] },
  answer: ['2', '2', '4'],
};
const right: RewardFunction = ({ completions, answer }) => completions.map((text, i) => Number(text === answer[i]));
const short: RewardFunction = async ({ completionIds }) => completionIds.map((ids) => -ids.length);
const call = (functions: RewardFunction[], weights = functions.map(() => 1), timeout = 5) =>
  callRewards(functions, INPUTS, { weights, timeout });

it('adds up what the functions say, by their weights', async () => {
  expect(await call([right, short], [2, 0.5])).toEqual([
    { reward: 1.5, rewards: [1, -1] },
    { reward: -0.5, rewards: [0, -1] },
    { reward: 1.5, rewards: [1, -1] },
  ]);
});

it('leaves out a function that has nothing to say of a completion', async () => {
  const sometimes: RewardFunction = ({ completions }) => completions.map((text) => (text === '3' ? null : 5));
  expect(await call([right, sometimes])).toEqual([
    { reward: 6, rewards: [1, 5] },
    { reward: 0, rewards: [0, null] },
    { reward: 6, rewards: [1, 5] },
  ]);
});

it('asks them side by side', async () => {
  const order: string[] = [];
  const slow = (name: string): RewardFunction =>
    Object.defineProperty(
      async () => {
        order.push(`${name} asked`);
        await new Promise((resolve) => setTimeout(resolve, 20));
        order.push(`${name} answers`);
        return [0, 0, 0];
      },
      'name',
      { value: name },
    );
  await call([slow('a'), slow('b')]);
  expect(order.slice(0, 2)).toEqual(['a asked', 'b asked']);
});

describe('refuses with one sentence', () => {
  const returning = (value: unknown): RewardFunction => {
    const mine = () => value as number[];
    return mine;
  };
  const WRONG: [what: string, reward: RewardFunction, message: RegExp][] = [
    ['one value for all', returning(1), /function mine must return a list .* 3 completions, found 1/],
    ['nothing', returning(undefined), /must return a list .* found null/],
    ['too few', returning([1, 2]), /must return 3 rewards, one a completion, found 2/],
    ['too many', returning([1, 2, 3, 4]), /must return 3 rewards, one a completion, found 4/],
    ['NaN', returning([1, Number.NaN, 3]), /found NaN for completion 1/],
    ['infinity', returning([Number.POSITIVE_INFINITY, 1, 3]), /found Infinity for completion 0/],
    ['undefined', returning([1, 2, undefined]), /found undefined for completion 2/],
    ['a hole', returning(Object.assign([1], { 2: 2 })), /found undefined for completion 1/],
    ['a text', returning([1, '2', 3]), /found "2" for completion 1/],
    ['true', returning([true, false, true]), /found true for completion 0/],
    [
      'null from all',
      returning([null, 1, 1]),
      /no reward function has a reward for completion 0, of the prompt "1\+1"/,
    ],
  ];
  it.each(WRONG)('%s', async (_, reward, message) => {
    await expect(call([reward])).rejects.toThrow(message);
  });

  it('one that throws, or rejects', async () => {
    const broken: RewardFunction = () => {
      throw new Error('no such column');
    };
    const late: RewardFunction = () => Promise.reject(new Error('503'));
    await expect(call([broken])).rejects.toThrow('the reward function broken threw: no such column');
    await expect(call([late])).rejects.toThrow('the reward function late threw: 503');
  });

  it('one that does not answer', async () => {
    const silent: RewardFunction = () => new Promise(() => {});
    await expect(call([silent], [1], 0.05)).rejects.toThrow(
      /silent has not answered within 0.05 seconds: raise rewardT/,
    );
  });

  it('a sum that is not finite', async () => {
    await expect(call([returning([1e308, 1, 1])], [1e10])).rejects.toThrow(/weighted sum of the rewards is Infinity/);
  });

  it('none, what is none, and two of one name', () => {
    expect(() => namesOf([])).toThrow('expected at least one function, found none');
    expect(() => namesOf(['right' as unknown as RewardFunction])).toThrow(
      'rewardFuncs[0] must be a function, or the name of a reward model, found "right"',
    );
    expect(() => namesOf([right, right])).toThrow('rewardFuncs: two are called right');
    expect(namesOf([right, () => []])).toEqual(['right', 'reward_1']);
  });
});
