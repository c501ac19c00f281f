/**
 * The sloppy pupil with a calculator. It can type a problem in, wait, and copy the result; but mostly it makes an answer
 * up, and if it does not, it may forget to close the call, leave out the end of the problem, put down something other
 * than the result, or leave out the tags.
 */

import { calculate } from '../../lib/environments/arithmetic.ts';
import type { Product } from '../../tasks/products/generate.ts';
import type { Part } from './pupil.ts';

/** How often the pupil does what, as probabilities. */
export const CALLER_HABITS = {
  /** Makes up an answer, without a call. */
  guesses: 0.55,
  /** Ends without closing the call. */
  breaksOff: 0.1,
  /** Leaves out the last digits and all before them up to an operator, at which the calculator stumbles. */
  truncates: 0.1,
  /** Puts down another number than the result. */
  ignores: 0.35,
  /** The answer comes without its tags. */
  noTags: 0.15,
};

/** A number as long as `value`, of random digits. */
function guessAt(value: number, random: () => number): string {
  const digits = Array.from(`${value}`, () => Math.floor(10 * random()));
  return [Math.max(1, digits[0]), ...digits.slice(1)].join('');
}

/**
 * Writes one conversation as the pupil and the calculator would.
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikeCaller({ text, value }: Product, random: () => number, habits = CALLER_HABITS): Part[] {
  const end = (answer: string): Part => {
    return { by: 'pupil', text: random() < habits.noTags ? answer : `<answer>${answer}</answer>` };
  };
  if (random() < habits.guesses) return [end(guessAt(value, random))];
  if (random() < habits.breaksOff) return [{ by: 'pupil', text: `<tool:calc>${text}` }];
  const typed = random() < habits.truncates ? text.replace(/\d+$/, '') : text;
  const call: Part = { by: 'pupil', text: `<tool:calc>${typed}</tool>` };
  const { ok, text: result } = calculate(typed);
  if (!ok) return [call]; // that is where the episode ends
  const answer = random() < habits.ignores ? guessAt(value, random) : result;
  return [call, { by: 'tool', text: `<result>${result}</result>` }, end(answer)];
}
