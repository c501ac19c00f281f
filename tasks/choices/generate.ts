/**
 * Writes the choices task: `tasks/choices/train.jsonl` and `tasks/choices/test.jsonl`, sums of three terms with two results
 * to choose from, such as `47+38-9:66,76`. Who does not work it out can guess, and is right half of the time. No
 * question of one file is in the other.
 *
 *   node --import tsx tasks/choices/generate.ts
 */
import { runMain } from '../../lib/cli/main.ts';
import { parseNoOptions } from '../../lib/cli/options.ts';
import { drawTask, type Task, writeTask } from '../draw_task.ts';
import { drawSum, type Sum, sumText } from '../sums/generate.ts';

/** A sum, its value, and another that is 10 more or less; `text` is the question. */
export type Choice = { terms: Sum; right: number; wrong: number; text: string };

const SEED = 22;
const TRAIN_SIZE = 2000;
const TEST_SIZE = 200;

/** @param random - uniform numbers in [0, 1) */
export function drawChoice(random: () => number): Choice {
  for (;;) {
    const terms = drawSum(random);
    if (terms.length !== 3) continue;
    const right = terms.reduce((a, b) => a + b);
    const above = right < 10 || (right < 90 && random() < 0.5);
    const wrong = above ? right + 10 : right - 10;
    const results = random() < 0.5 ? [right, wrong] : [wrong, right];
    return { terms, right, wrong, text: `${sumText(terms)}:${results}` };
  }
}

/** Choices whose sums are all different. */
export const taskChoices = (): Task<Choice> =>
  drawTask(SEED, drawChoice, ({ terms }) => sumText(terms), { test: TEST_SIZE, train: TRAIN_SIZE });

function main(): void {
  parseNoOptions(
    'tasks/choices/generate.ts',
    'Writes the choices, tasks/choices/train.jsonl and tasks/choices/test.jsonl, as they are in the repository.',
  );
  writeTask('choices', taskChoices(), ({ text, right }) => ({ question: text, answer: right }));
}

await runMain(import.meta.url, main);
