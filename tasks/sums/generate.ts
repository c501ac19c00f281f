/**
 * Writes the arithmetic task: `tasks/sums/train.jsonl` and `tasks/sums/test.jsonl`, sums and differences of two or three
 * terms such as `47+38-9`. No question of one file is in the other.
 *
 *   node --import tsx tasks/sums/generate.ts
 */
import { runMain } from '../../lib/cli/main.ts';
import { parseNoOptions } from '../../lib/cli/options.ts';
import { drawTask, type Task, writeTask } from '../draw_task.ts';

/** Terms with their signs: the first is positive, `[47, 38, -9]` is `47+38-9`. */
export type Sum = number[];

const SEED = 20;
const TRAIN_SIZE = 4000;
const TEST_SIZE = 500;

/** How many of the sums need a carry or a borrow. */
const CARRY_SHARE = 0.7;

/** Whether a column of one of the steps runs over: `47+38` and `85-9` do, `41+38` does not. */
export function needsCarry(terms: Sum): boolean {
  let value = terms[0];
  return terms.slice(1).some((term) => {
    const units = (value % 10) + (term % 10); // a negative term has a negative remainder
    value += term;
    return units < 0 || units > 9;
  });
}

/**
 * Draws a sum of two terms (a third of them) or three, whose value stays from 0 to 99 all the way.
 * @param random - uniform numbers in [0, 1)
 */
export function drawSum(random: () => number): Sum {
  const from1To = (limit: number) => 1 + Math.floor(random() * limit);
  const carries = random() < CARRY_SHARE;
  const count = random() < 1 / 3 ? 2 : 3;
  for (;;) {
    let value = from1To(99);
    const terms = [value];
    while (terms.length < count) {
      const adds = value === 0 || (value < 99 && random() < 0.5);
      const term = adds ? from1To(99 - value) : -from1To(value);
      terms.push(term);
      value += term;
    }
    if (needsCarry(terms) === carries) return terms;
  }
}

/** @returns the sum as text: `47+38-9` */
export const sumText = (terms: Sum): string => terms.map((term, i) => (i > 0 && term > 0 ? `+${term}` : term)).join('');

export const taskSums = (): Task<Sum> => drawTask(SEED, drawSum, sumText, { test: TEST_SIZE, train: TRAIN_SIZE });

function main(): void {
  parseNoOptions(
    'tasks/sums/generate.ts',
    'Writes the sums, tasks/sums/train.jsonl and tasks/sums/test.jsonl, as they are in the repository.',
  );
  writeTask('sums', taskSums(), (terms) => ({ question: sumText(terms), answer: terms.reduce((a, b) => a + b) }));
}

await runMain(import.meta.url, main);
