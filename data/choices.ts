/**
 * Writes the choices task: `data/choices_train.jsonl` and `data/choices_test.jsonl`, sums of three terms with two results
 * to choose from, such as `47+38-9:66,76`. Who does not work it out can guess, and is right half of the time. No
 * question of one file is in the other.
 *
 *   npx tsx data/choices.ts
 */
import { writeFileSync } from 'node:fs';
import { runMain } from '../lib/run/main.ts';
import { uniform } from '../lib/run/random.ts';
import { drawSum, type Sum, sumText } from './sums.ts';

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

/** @returns choices of distinct sums: the first TEST_SIZE are the held-out ones, TRAIN_SIZE follow */
export function taskChoices(): { test: Choice[]; train: Choice[] } {
  const choices = new Map<string, Choice>();
  for (let i = 0; choices.size < TEST_SIZE + TRAIN_SIZE; i++) {
    let draw = 0;
    const choice = drawChoice(() => uniform(SEED, i, draw++));
    choices.set(sumText(choice.terms), choice);
  }
  const all = [...choices.values()];
  return { test: all.slice(0, TEST_SIZE), train: all.slice(TEST_SIZE) };
}

function main(): void {
  for (const [split, choices] of Object.entries(taskChoices())) {
    const lines = choices.map(({ text, right }) => JSON.stringify({ question: text, answer: right }));
    writeFileSync(`data/choices_${split}.jsonl`, `${lines.join('\n')}\n`);
  }
}

await runMain(import.meta.url, main);
