/**
 * Writes the cases: `tasks/vignettes/train.jsonl` and `tasks/vignettes/test.jsonl`, what is wrong with a patient, whoever
 * that is, and how invasive a treatment may be, such as `3-5` of 10. No case of one file is in the other. All of it is
 * made up, and no advice.
 *
 *   node --import tsx tasks/vignettes/generate.ts
 */
import { runMain } from '../../lib/cli/main.ts';
import { parseNoOptions } from '../../lib/cli/options.ts';
import { permutation } from '../../lib/random.ts';
import { type Task, writeTask } from '../draw_task.ts';

/** `appropriate`: the least and the most invasiveness that the guideline of this toy world calls for. */
export type Case = { complaint: string; appropriate: [number, number] };

const SEED = 24;
const TEST_SIZE = 24;

/** What each part of a case adds to how invasive the treatment should be. */
const COMPLAINTS: [string, number][] = [
  ['Low back pain', 0],
  ['Neck pain', 0],
  ['Shoulder pain', 0],
  ['Knee pain', 0],
  ['Hip pain', 0.5],
  ['Back pain running down one leg', 1],
];
const DURATIONS: [string, number][] = [
  ['1 week', 0],
  ['3 weeks', 0.5],
  ['6 weeks', 1],
  ['12 weeks', 1.5],
  ['26 weeks', 2],
];
const FINDINGS: [string, number][] = [
  ['Nothing found', 0],
  ['Muscles tight and tender', 1],
  ['Movement limited', 2],
  ['Numbness, a nerve irritated', 3.5],
  ['Weakness, a nerve compressed', 5],
];
const ORIGINS: [string, number][] = [
  ['', 0],
  [' after an injury at work', 0.5],
];

/** All 300 cases. */
export const cases = (): Case[] =>
  COMPLAINTS.flatMap(([where, a]) =>
    DURATIONS.flatMap(([duration, b]) =>
      FINDINGS.flatMap(([findings, c]) =>
        ORIGINS.map(([origin, d]): Case => {
          const least = Math.floor(a + b + c + d);
          return { complaint: `${where} for ${duration}${origin}. ${findings}.`, appropriate: [least, least + 2] };
        }),
      ),
    ),
  );

export function taskCases(): Task<Case> {
  const all = cases();
  const shuffled = permutation(all.length, SEED).map((i) => all[i]);
  return { test: shuffled.slice(0, TEST_SIZE), train: shuffled.slice(TEST_SIZE) };
}

/** All words that cases have. */
export const caseWords = (): string[] => [
  ...new Set(cases().flatMap(({ complaint }) => complaint.match(/[A-Za-z]+/g)!)),
];

function main(): void {
  parseNoOptions('tasks/vignettes/generate.ts', 'Writes the cases of tasks/vignettes, as they are in the repository.');
  writeTask('vignettes', taskCases(), ({ complaint, appropriate }) => ({
    question: complaint,
    answer: appropriate.join('-'),
  }));
}

await runMain(import.meta.url, main);
