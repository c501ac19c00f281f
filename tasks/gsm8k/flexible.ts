/** GSM8K for a model that keeps to no format: its last number counts (`--task gsm8k/flexible`). */
import type { Task } from '../../lib/environments/task.ts';
import { extractedReward, extractedVerdict } from './score.ts';
import { task as tagged } from './task.ts';

export const task: Task = {
  load: tagged.load,
  systemPrompt: 'Solve the problem step by step, and end with the final number.',
  verdict: (text, { answer }) => extractedVerdict(text, answer, 'flexible'),
  reward: (text, { answer }) => extractedReward(text, answer, { extraction: 'flexible' }),
};
