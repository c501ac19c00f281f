/**
 * What a model can do: the evaluation of experiment_base, for any model and data set.
 *
 *   npm run evaluate                                                     the bundled model, on sums that it has not seen
 *   npm run evaluate -- runs/experiment_base/<time> --samples 16
 *   npm run evaluate -- models/tiny_countdown --task countdown/small --max-new-tokens 160
 *   npm run evaluate -- Qwen/Qwen2.5-0.5B-Instruct --dataset my_test.jsonl --max-new-tokens 200
 */
import { buildPrompt, evaluate } from '../experiment_base/train.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number, parseOptions } from '../lib/cli/options.ts';
import { checkPrompts, loadProblems } from '../lib/environments/dataset.ts';
import { loadData } from '../lib/environments/task.ts';
import { watchEvaluation } from '../lib/run/evaluation.ts';
import { progress } from '../lib/run/progress.ts';
import { createPolicyCommand, loadPolicy } from './policy.ts';

const SUMS = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };

export const createCommand = () =>
  createPolicyCommand('evaluate')
    .description('Asks a model the questions of a data set, and says how many it answers rightly.')
    .addHelpText(
      'after',
      examples('npm run evaluate', 'npm run evaluate -- runs/experiment_base/<time> --dataset my_test.jsonl'),
    )
    .option('--max-new-tokens <n>', 'tokens an answer may have', integer({ min: 1 }))
    .option('--temperature <x>', 'of the samples', number({ min: 0.001, max: 1000 }))
    .optionsGroup('Questions:')
    .option(
      '--dataset <file>',
      "JSONL with a question and an answer a line (default: a run's held-out ones, else the sums)",
    )
    .option('--task <name>', "of tasks/, or a module: held-out questions, prompt and rules (default: a run's)")
    .option('--question-column <name>', 'the column that holds the question')
    .option('--answer-column <name>', 'the column that holds the answer')
    .option(
      '--eval-size <n>',
      'the first so many (default: all of a file, of a task or run as many as in training)',
      integer({ min: 1 }),
    )
    .option(
      '--samples <n>',
      'samples of each besides the greedy answer, for pass@n (0: none)',
      integer({ min: 0, max: 1024 }),
      8,
    );

async function main(): Promise<void> {
  const command = createCommand();
  const { samples, ...given } = parseOptions(command);
  const [name] = command.processedArgs;
  const { dataset, task, evalSize } = given;
  const asked = dataset === undefined || task ? undefined : loadProblems(dataset, given).slice(0, evalSize);
  const { model, tokenizer, options, isFromRun } = await loadPolicy(name, given);
  if (asked && options.task)
    console.log(`(judged as by experiment_base: the rules of --task ${options.task} are for its own questions)`);
  // Without a data set: what the task or the run held out, or else the sums.
  const heldOut = async () => (task || isFromRun ? (await loadData(options, SUMS)).test : loadProblems(SUMS.test));
  const problems = asked ?? (await heldOut()).slice(0, evalSize);
  const prompts = problems.map((problem) => ({
    prompt: buildPrompt(tokenizer, problem, options),
    source: problem.source,
  }));
  checkPrompts(prompts, model.config, options);
  const heldOutBy = isFromRun ? 'those that the run held out' : SUMS.test;
  console.log(`${problems.length} problems of ${asked ? dataset : (task ?? heldOutBy)}`);

  const bar = progress({ total: 0 });
  try {
    const watch = watchEvaluation(problems.length * (1 + samples), bar, options);
    const { metrics: shares } = await evaluate(model, tokenizer, problems, { ...watch, samples }, options);
    const percent = (share: number) => `${(100 * share).toFixed(1)} %`;
    const { 'eval/accuracy': accuracy, 'eval/format': format, 'eval/ability': ability } = shares;
    const split = format > 0 ? `, of which ${percent(ability)} are right` : '';
    bar.log(`greedy: ${percent(accuracy)} (${percent(format)} give an answer${split})`);
    if (samples === 0) return;
    bar.log(`sampled: ${percent(shares['eval/sampled_accuracy'])}, at temperature ${options.temperature}`);
    const passed = Object.entries(shares).filter(([name]) => name.startsWith('eval/pass_at_'));
    const line = passed
      .map(([name, share]) => `pass@${name.slice('eval/pass_at_'.length)} ${percent(share)}`)
      .join(', ');
    bar.log(`${line}: at least one of so many samples is right`);
  } finally {
    bar.stop();
  }
}

await runMain(import.meta.url, main);
