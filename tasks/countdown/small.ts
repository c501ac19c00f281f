/** Countdown for a tiny model: three numbers from 1 to 12, and what two of + - * make of them. Drawn here. */
import type { Task } from '../../lib/environments/task.ts';
import { drawTask } from '../draw_task.ts';
import type { Countdown } from './score.ts';
import { task as countdown, problemOf } from './task.ts';

const [SEED, SIZES] = [23, { train: 2000, test: 200 }];

/** What is tried: `3+5=8`, then `8*2=16`; `text` is the equation, `(3+5)*2`. */
export type Try = { steps: string[]; text: string; value: number };

/** No value on the way is above it, or below 0. */
const LIMIT = 99;

/** All that can be made of three numbers in two steps, each of which takes the larger number first. */
export function triesOf(numbers: number[]): Try[] {
  const tries: Try[] = [];
  for (const [i, j, k] of [
    [0, 1, 2],
    [0, 2, 1],
    [1, 2, 0],
  ]) {
    for (const inner of combinations(
      { text: `${numbers[i]}`, value: numbers[i] },
      { text: `${numbers[j]}`, value: numbers[j] },
    )) {
      const third = { text: `${numbers[k]}`, value: numbers[k] };
      for (const outer of combinations({ text: `(${inner.text})`, value: inner.value }, third)) {
        tries.push({ ...outer, steps: [inner.step, outer.step] });
      }
    }
  }
  return tries;
}

type Term = { text: string; value: number };

function combinations(one: Term, other: Term): (Term & { step: string })[] {
  const [a, b] = one.value >= other.value ? [one, other] : [other, one];
  const results = [
    { sign: '+', value: a.value + b.value },
    { sign: '-', value: a.value - b.value },
    { sign: '*', value: a.value * b.value },
  ];
  return results
    .filter(({ value }) => value <= LIMIT)
    .map(({ sign, value }) => ({
      ...{ text: `${a.text}${sign}${b.text}`, value },
      step: `${a.value}${sign}${b.value}=${value}`,
    }));
}

/** Its numbers are in order, so that two with the same numbers and target are the same question. */
export function drawSmall(random: () => number): Countdown {
  for (;;) {
    const numbers = Array.from({ length: 3 }, () => 1 + Math.floor(random() * 12)).sort((a, b) => a - b);
    const tries = triesOf(numbers);
    const { value: target } = tries[Math.floor(random() * tries.length)];
    if (target > 0) return { numbers, target };
  }
}

/** Countdowns of which no two have the same numbers and target. */
export const smallCountdowns = () => drawTask(SEED, drawSmall, ({ numbers, target }) => `${numbers}=${target}`, SIZES);

export const task: Task = {
  ...countdown,
  load: (options) => {
    if (options.dataset !== undefined) return countdown.load(options);
    const { train, test } = smallCountdowns();
    return { train: train.map(problemOf), test: test.map(problemOf) };
  },
};
