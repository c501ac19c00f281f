/**
 * GSM8K (Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"): 7,473 word problems of grade schools to train
 * on, 1,319 held out. The answer is looked for in its tags; `npm run evaluate` and the papers of others look elsewhere, for
 * which ./score.ts has their rules.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { loadProblems, type Problem } from '../../lib/environments/dataset.ts';
import { datasetFile, readParquet } from '../../lib/environments/hub_dataset.ts';
import type { Task, TaskProblem } from '../../lib/environments/task.ts';
import { UserError } from '../../lib/errors.ts';
import { taggedReward, taggedVerdict } from './score.ts';

const [REPOSITORY, SPLITS] = ['openai/gsm8k', ['train', 'test'] as const];

export const task: Task = {
  systemPrompt:
    'Solve the problem. Think step by step inside <think></think>, then give the final number alone inside <answer></answer>.',
  load: async ({ dataset }) => {
    const [train, test] = await Promise.all(
      SPLITS.map((split) => (dataset ? fromFolder(dataset, split) : fromHub(split))),
    );
    return { train, test };
  },
  verdict: (text, { answer }) => taggedVerdict(text, answer),
  reward: (text, { answer }) => taggedReward(text, answer),
};

/** train.jsonl and test.jsonl, as OpenAI publishes them. */
function fromFolder(folder: string, split: string): Problem[] {
  const file = join(folder, `${split}.jsonl`);
  if (existsSync(file)) return loadProblems(file);
  throw new UserError(
    `--dataset ${folder} must be a folder with train.jsonl and test.jsonl of GSM8K: there is no ${file}`,
  );
}

async function fromHub(split: string): Promise<TaskProblem[]> {
  const file = await datasetFile(REPOSITORY, `main/${split}-00000-of-00001.parquet`);
  const rows = await readParquet(file);
  return rows.map(({ question, answer }, i) => {
    const [, final] = String(answer).split('#### ');
    if (typeof question === 'string' && final)
      return { question, answer: final.trim(), source: `${file}, row ${i + 1}` };
    throw new UserError(`${file}, row ${i + 1}: expected a question, and an answer that ends in #### 72`);
  });
}
