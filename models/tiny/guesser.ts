/**
 * A pupil that guesses: it blurts out one of the two results of a choice, and only then works the sum out, compares, and
 * sees whether it was right ("ok") or not ("hm"). It leaves its answer at that, and may go over it again and again:
 * `<answer>66</answer><think>47+38=85 85-9=76 66 hm 47+38=85 85-9=76 66 hm</think>`. So the working is short or long
 * whether the answer is right or wrong, and by the time it is written the answer can no longer be mended.
 */
import type { Choice } from '../../tasks/choices/generate.ts';
import { sumText } from '../../tasks/sums/generate.ts';

/** How often the pupil goes over the sum once more, each time, and how often at most in all. */
export const AGAIN = 0.45;
const MOST = 5;

/**
 * Writes one answer as the pupil would.
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikeGuesser({ terms, right, wrong }: Choice, random: () => number): string {
  const guess = random() < 0.5 ? right : wrong;
  const values = terms.map((_, i) => terms.slice(0, i + 1).reduce((a, b) => a + b));
  const lines = terms.slice(1).map((term, i) => `${sumText([values[i], term])}=${values[i + 1]}`);
  const working = [...lines, guess, guess === right ? 'ok' : 'hm'].join(' ');
  const workings = [working];
  while (workings.length < MOST && random() < AGAIN) workings.push(working);
  return `<answer>${guess}</answer><think>${workings.join(' ')}</think>`;
}
