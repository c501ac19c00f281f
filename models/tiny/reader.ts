/**
 * The sloppy reader from whom the tiny model learns to look things up. It can search, read and search again, but often
 * does not: it makes an answer up, leaves a search unfinished, answers with the first thing that it finds, or forgets
 * the tags.
 */
import type { Question } from '../../tasks/encyclopedia/generate.ts';
import type { Part } from './pupil.ts';

/** How often the reader does what, as probabilities. */
export const READER_HABITS = {
  /** Makes up an answer without a search. */
  guesses: 0.4,
  /** Ends a search without its closing tag. */
  breaksOff: 0.1,
  /** Takes what the first of several searches finds for the answer. */
  hasty: 0.7,
  /** Makes up an answer after all searches. */
  ignores: 0.2,
  /** The answer comes without its tags. */
  noTags: 0.1,
};

/**
 * @param guess - any answer of the right kind
 * @param search - what the search tool answers to a query
 * @param random - uniform numbers in [0, 1)
 */
export function answerLikeReader(
  { answer, supporting }: Question,
  { guess, search }: { guess: string; search: (query: string) => string },
  random: () => number,
  habits = READER_HABITS,
): Part[] {
  const end = (text: string): Part => ({
    text: random() < habits.noTags ? text : `<answer>${text}</answer>`,
    by: 'pupil',
  });
  if (random() < habits.guesses) return [end(guess)];
  const parts: Part[] = [];
  for (const [hop, title] of supporting.entries()) {
    if (random() < habits.breaksOff) return [...parts, { text: `<tool:search>${title}`, by: 'pupil' }];
    parts.push({ text: `<tool:search>${title}</tool>`, by: 'pupil' });
    parts.push({ text: `<result>${search(title)}</result>`, by: 'tool' });
    if (hop === 0 && supporting.length > 1 && random() < habits.hasty) return [...parts, end(supporting[1])];
  }
  return [...parts, end(random() < habits.ignores ? guess : answer)];
}
