/** That one repaired (`--task reward_lab/short_if_right`): only right answers are compared by their length. */
import { sameAnswer } from '../../lib/environments/answers.ts';
import type { Task } from '../../lib/environments/task.ts';
import { task as sums } from '../sums/task.ts';
import { answerIn } from './working.ts';

/** 1 for a right answer, less 0.005 for each character, but never below 0.5; 0.1 for a wrong one, 0 for none. */
export const shortIfRight = (text: string, { answer }: { answer: string }): number => {
  const given = answerIn(text);
  if (given === undefined) return 0;
  return sameAnswer(given, answer) ? Math.max(0.5, 1 - 0.005 * text.length) : 0.1;
};

export const task: Task = { ...sums, reward: (text, { answer }) => shortIfRight(text, { answer: String(answer) }) };
