/** That one repaired (`--task reward_lab/some_line`): there must be working. It still does not know the answer. */
import type { Task } from '../../lib/environments/task.ts';
import { task as sums } from '../sums/task.ts';
import { everyLine } from './every_line.ts';
import { linesOf } from './working.ts';

/** 1 for an answer with working in which no line is false, else 0. */
export const someLine = (text: string): number => Number(linesOf(text).length > 0 && everyLine(text) === 1);

export const task: Task = { ...sums, reward: someLine };
