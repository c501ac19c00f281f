/**
 * A pupil that plays countdown by trying: it combines two of the numbers, takes the third, and sees whether that makes the
 * target, `<think>3+5=8 8+2=10 no 3+5=8 8*2=16 yes</think><answer>(3+5)*2</answer>`. But it soon loses patience, and then
 * hands in whatever it has tried last. GRPO has to find out that to go on searching is what pays.
 */
import type { Countdown } from '../../tasks/countdown/score.ts';
import { triesOf } from '../../tasks/countdown/small.ts';

/** How often the pupil does what, as probabilities. */
export const SEARCHER_HABITS = {
  /** It sees what makes the target, rather than trying anything. */
  sees: 0.1,
  /** After a try in vain it hands that in. */
  givesUp: 0.5,
};

/** So many tries fit into what a tiny model may read. */
const MOST_TRIES = 8;

/**
 * Writes one answer as the pupil would.
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikeSearcher(
  { numbers, target }: Countdown,
  random: () => number,
  habits = SEARCHER_HABITS,
): string {
  const pick = <T>(items: T[]): T => items[Math.floor(random() * items.length)];
  let left = triesOf(numbers);
  const lines: string[] = [];
  for (;;) {
    const right = left.filter(({ value }) => value === target);
    const tried = pick(right.length > 0 && random() < habits.sees ? right : left);
    left = left.filter(({ text }) => text !== tried.text);
    const found = tried.value === target;
    lines.push(`${tried.steps.join(' ')} ${found ? 'yes' : 'no'}`);
    if (found || lines.length === MOST_TRIES || left.length === 0 || random() < habits.givesUp) {
      return `<think>${lines.join(' ')}</think><answer>${tried.text}</answer>`;
    }
  }
}
