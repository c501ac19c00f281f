/** GSM8K as verl scores it: the number after ####, letter by letter (`--task gsm8k/strict`). */
import type { Task } from '../../lib/environments/task.ts';
import { extractedReward, extractedVerdict } from './score.ts';
import { task as tagged } from './task.ts';

export const task: Task = {
  load: tagged.load,
  systemPrompt: 'Let\'s think step by step and output the final answer after "####".',
  verdict: (text, { answer }) => extractedVerdict(text, answer),
  reward: (text, { answer }) => extractedReward(text, answer),
};
