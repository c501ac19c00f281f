import { describe, expect, it } from 'vitest';
import { loadData } from '../../lib/environments/task.ts';
import { anyAnswer } from './any_answer.ts';
import { everyLine } from './every_line.ts';
import { short } from './short.ts';
import { shortIfRight } from './short_if_right.ts';
import { someLine } from './some_line.ts';
import { answerIn, linesOf } from './working.ts';

const RIGHT = '<think>47+38=85 85-9=76</think><answer>76</answer>'; // 50 characters
const WRONG = '<think>47+38=75 75-9=66</think><answer>66</answer>';
const BARE = '<answer>66</answer>';
const FOREIGN = '<think>1+1=2</think><answer>66</answer>';

describe('working', () => {
  it('is read line by line, and each is true or false by itself', () => {
    expect(linesOf(RIGHT)).toEqual([
      { text: '47+38=85', isTrue: true },
      { text: '85-9=76', isTrue: true },
    ]);
    expect(linesOf(WRONG).map(({ isTrue }) => isTrue)).toEqual([false, true]);
    expect(linesOf('47+38=85')).toEqual([]);
    expect([answerIn(RIGHT), answerIn('<answer></answer>'), answerIn('76')]).toEqual(['76', undefined, undefined]);
  });
});

// Worked out by hand.
it.each([
  ['everyLine', everyLine, [1, 0, 1, 1, 0]],
  ['someLine', someLine, [1, 0, 0, 1, 0]],
  ['anyAnswer', (text: string) => anyAnswer(text, { answer: '76' }), [1, 0, 0, 0, 0]],
  ['short', (text: string) => short(text, { answer: '76' }), [0, -0.9, -0.28, -0.68, 0]],
  ['shortIfRight', (text: string) => shortIfRight(text, { answer: '76' }), [0.75, 0.1, 0.1, 0.1, 0]],
])('%s: right, wrong, without working, with foreign working, nothing', (_, reward, worth) => {
  const found = [RIGHT, WRONG, BARE, FOREIGN, ''].map(reward);
  for (const [i, value] of found.entries()) expect(value).toBeCloseTo(worth[i], 12);
});

it('several answers need only one that is right, and a right one is never below half', () => {
  expect(anyAnswer('<answer>66</answer><answer>76.0</answer>', { answer: '76' })).toBe(1);
  expect(shortIfRight(RIGHT.replace('76', `76${' '.repeat(200)}`), { answer: '76' })).toBe(0.5);
});

it.each(['every_line', 'some_line', 'any_answer', 'short', 'short_if_right'])(
  '--task reward_lab/%s has the sums, and a reward of its own',
  async (name) => {
    const SUMS = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
    const options = { task: `reward_lab/${name}`, dataset: SUMS.train, evalSize: 200, seed: 0 };
    const { train, test } = await loadData(options as Parameters<typeof loadData>[0], SUMS);
    expect([train.length, test.length]).toEqual([4000, 200]);
    expect(train[0].task?.reward?.('')).toBe(0);
  },
);
