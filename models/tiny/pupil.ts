/**
 * The sloppy pupil whose homework the tiny model learns from. It knows arithmetic, but has a habit: most of the time it
 * is in a hurry, and then forgets every carry and every borrow. It also slips now and then, skips the working, or leaves
 * the tags out. GRPO has to find by itself that carrying, and answering in the tags, is what pays.
 */
import { type Sum, sumText } from '../../tasks/sums/generate.ts';

/** One stretch of a demonstration, and who wrote it: what a tool answered is read, not imitated. */
export type Part = { by: 'pupil' | 'tool'; text: string };

/** How often the pupil does what, as probabilities. */
export const HABITS = {
  /** It is in a hurry: no carry and no borrow in the whole sum. */
  hurries: 0.75,
  /** A working line ends in a random number close to the right one. */
  slips: 0.03,
  /** The answer comes without any working. */
  noWorking: 0.15,
  /** The answer comes without its tags. */
  noTags: 0.15,
};

/** `a + b`, column by column, with every carry between columns forgotten: 47 + 38 = 75. */
export function addForgettingCarry(a: number, b: number): number {
  let sum = 0;
  for (let column = 1; a > 0 || b > 0; column *= 10, a = Math.floor(a / 10), b = Math.floor(b / 10)) {
    const digits = (a % 10) + (b % 10);
    const last = a < 10 && b < 10;
    sum += (last ? digits : digits % 10) * column;
  }
  return sum;
}

/** `a - b` for a ≥ b, column by column, with every borrow forgotten: 52 − 38 = 24. */
export function subtractForgettingBorrow(a: number, b: number): number {
  let difference = 0;
  for (let column = 1; a > 0; column *= 10, a = Math.floor(a / 10), b = Math.floor(b / 10)) {
    difference += (((a % 10) - (b % 10) + 10) % 10) * column;
  }
  return difference;
}

/**
 * Writes one answer as the pupil would: `<think>47+38=85 85-9=76</think><answer>76</answer>`.
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikePupil(terms: Sum, random: () => number, habits = HABITS): string {
  const hurries = random() < habits.hurries;
  const lines: string[] = [];
  let value = terms[0];
  for (const term of terms.slice(1)) {
    const careless = term > 0 ? addForgettingCarry(value, term) : subtractForgettingBorrow(value, -term);
    let result = hurries ? careless : value + term;
    if (random() < habits.slips) result = Math.max(0, result + Math.floor(random() * 21) - 10);
    lines.push(`${sumText([value, term])}=${result}`);
    value = result;
  }
  const working = random() < habits.noWorking ? '' : `<think>${lines.join(' ')}</think>`;
  return working + (random() < habits.noTags ? `${value}` : `<answer>${value}</answer>`);
}
