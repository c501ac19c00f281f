/**
 * IFEval (Zhou et al. 2023): 541 prompts with instructions that a program can verify. An answer is right if it follows all
 * of them to the letter; the reward is the share that it follows. There is nothing to train on apart from what is to be asked:
 * some are held out.
 */

import { datasetFile } from '../../lib/environments/hub_dataset.ts';
import { readJsonLines } from '../../lib/environments/json_lines.ts';
import type { Task, TaskProblem } from '../../lib/environments/task.ts';
import { isObject, type JsonObject } from '../../lib/json.ts';
import { mean } from '../../lib/statistics.ts';
import { shown } from '../../lib/text.ts';
import { type Instruction, scores } from './checkers.ts';

export const task: Task = {
  systemPrompt: '',
  load: async ({ dataset }) => {
    const file = dataset ?? (await datasetFile('google/IFEval', 'ifeval_input_data.jsonl'));
    return { train: readJsonLines(file, problemOf) };
  },
  verdict: (text, problem) => (scores(text, instructionsOf(problem)).isAllStrict ? 'right' : 'wrong'),
  reward: (text, problem) => mean(scores(text, instructionsOf(problem)).strict.map(Number)),
};

const instructionsOf = ({ columns }: TaskProblem) => (columns as { instructions: Instruction[] }).instructions;

/** A line as Google has published it: the prompt, the ids of its instructions, and the arguments of each. */
function problemOf({ prompt, instruction_id_list: ids, kwargs }: JsonObject): TaskProblem {
  if (typeof prompt !== 'string') throw new Error(`"prompt" must be a text, found ${shown(prompt ?? null)}`);
  if (!Array.isArray(ids) || ids.length === 0 || !Array.isArray(kwargs) || kwargs.length !== ids.length) {
    throw new Error(
      '"instruction_id_list" and "kwargs" must be lists of the same length, with at least one instruction',
    );
  }
  const instructions = ids.map((id, i) => ({ id: String(id), kwargs: isObject(kwargs[i]) ? kwargs[i] : {} }));
  for (const instruction of instructions) scores('', [instruction]); // a mistake is to be found now, not at its turn
  return { question: prompt, answer: ids.join(', '), columns: { instructions } };
}
