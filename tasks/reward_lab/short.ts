/** A length penalty gone wrong (`--task reward_lab/short`): every character costs, whatever the answer is worth. */
import { sameAnswer } from '../../lib/environments/answers.ts';
import type { Task } from '../../lib/environments/task.ts';
import { task as sums } from '../sums/task.ts';
import { answerIn } from './working.ts';

/** What the answer is worth, 1 if it is right and 0.1 if it is wrong, less 0.02 for each character. */
export const short = (text: string, { answer }: { answer: string }): number => {
  const given = answerIn(text);
  return (given === undefined ? 0 : sameAnswer(given, answer) ? 1 : 0.1) - 0.02 * text.length;
};

export const task: Task = { ...sums, reward: (text, { answer }) => short(text, { answer: String(answer) }) };
