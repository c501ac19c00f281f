/**
 * Countdown (TinyZero, Pan et al. 2025): make a number of some others, each used once. Drawn here, each with a solution; or
 * read from a JSONL file with `nums` and `target` a line.
 */
import { readJsonLines } from '../../lib/environments/json_lines.ts';
import type { Task, TaskProblem } from '../../lib/environments/task.ts';
import { shown } from '../../lib/text.ts';
import { drawTask } from '../draw_task.ts';
import { type Countdown, equationVerdict } from './score.ts';

const [SEED, SIZES] = [21, { train: 4000, test: 500 }];

export const task: Task = {
  systemPrompt:
    'Use each of the numbers exactly once, with + - * / and parentheses. Think inside <think></think>, then give the equation alone inside <answer></answer>, as <answer>(1+2)*3</answer>.',
  load: ({ dataset }) => {
    if (dataset === undefined) {
      const { train, test } = drawTask(SEED, drawCountdown, ({ numbers, target }) => `${numbers}=${target}`, SIZES);
      return { train: train.map(problemOf), test: test.map(problemOf) };
    }
    const read = readJsonLines(dataset, ({ nums, target }) => {
      if (Array.isArray(nums) && [...nums, target].every(Number.isSafeInteger)) {
        return problemOf({ numbers: nums as number[], target: target as number });
      }
      throw new Error(`expected whole numbers "nums" and a whole "target", found ${shown(nums)} and ${shown(target)}`);
    });
    return { train: read };
  },
  verdict: (text, { columns }) => equationVerdict(text, columns as Countdown),
};

/** The question that a countdown is. */
export const problemOf = (countdown: Countdown): TaskProblem => ({
  question: `Make ${countdown.target} of ${countdown.numbers.join(', ')}.`,
  answer: String(countdown.target),
  columns: countdown,
});

/** Numbers from 1 to 99, three or four of them, and what comes out if they are added and subtracted, or multiplied once. */
export function drawCountdown(random: () => number): Countdown {
  for (;;) {
    const numbers = Array.from({ length: random() < 0.5 ? 3 : 4 }, () => 1 + Math.floor(random() * 99));
    const target = numbers.slice(1).reduce((value, number) => {
      const kind = random();
      return kind < 0.15 ? value * number : kind < 0.6 ? value + number : value - number;
    }, numbers[0]);
    if (target > 0 && target < 1000) return { numbers, target };
  }
}
