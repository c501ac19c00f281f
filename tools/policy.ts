/** What `npm run ask` and `npm run evaluate` share: which model, and asked how. */
import { existsSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import { createCommand as createTrainCommand, type Options } from '../experiment_base/train.ts';
import { initBackend } from '../lib/backend/index.ts';
import { loadWithTokenizer, type Pretrained } from '../lib/checkpoint/pretrained.ts';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { backendOptions } from '../lib/cli/backend_options.ts';
import { integer, number, parseOptions } from '../lib/cli/options.ts';
import { importTask } from '../lib/environments/task.ts';
import { readJsonObject } from '../lib/json.ts';
import { findCheckpoints } from '../lib/run/find_run.ts';

/** Options of a run that say how its prompts are made: the same here. */
const PROMPT = ['systemPrompt', 'mergeSystemPrompt', 'chatTemplateKwargs'];

/** What experiments have that is not here. */
const OF_THEIR_OWN = [
  ['multiturn', 'a tool, which it is not given here'],
  [
    'fairness',
    'prompts and rewards of its own: here it is asked and judged as by experiment_base, which says little of it',
  ],
];

/** A command about a model, the bundled one if none is named. What is not given is as in the run that made the model. */
export function createPolicyCommand(name: string) {
  const command = new Command(name)
    .argument('[model]', 'a folder (a run, its final_model, a checkpoint, an adapter), or a hub id', 'models/tiny')
    .helpOption('-h, --help', 'display help for command')
    .optionsGroup('Backend:')
    .addOption(backendOptions.backend())
    .addOption(backendOptions.gpu())
    .addOption(backendOptions.threads())
    .optionsGroup('Sampling (default: as in the run that made the model, else as experiment_base has it):')
    .option('--top-k <n>', 'sample from the k most likely tokens (0: all)', integer({ min: 0 }))
    .option('--top-p <x>', 'sample from the most likely tokens that make up p', number({ above: 0, max: 1 }))
    .option('--seed <n>', 'of the random numbers', integer({ min: 0 }));
  const prompt = createTrainCommand().options.filter((option) => PROMPT.includes(option.attributeName()));
  for (const option of prompt) command.addOption(option);
  return command;
}

/** A model, and how it is asked: as by the run that made it, if one did, and as the command line says. */
export type Policy = { model: Pretrained; tokenizer: Tokenizer; options: Options; isFromRun: boolean };

/**
 * Loads a model for questions, and says what it is.
 * @param name - a `--model-name`, or a run's folder, which stands for its final_model, or else its newest checkpoint
 * @param given - what the command line says
 * @throws {UserError} if it cannot be used
 */
export async function loadPolicy(name: string, given: Pick<Options, 'backend'> & Partial<Options>): Promise<Policy> {
  const newest = existsSync(join(name, 'config.json')) ? [...findCheckpoints(name).values()].at(-1) : undefined;
  const folder = existsSync(join(name, 'final_model')) ? join(name, 'final_model') : (newest ?? name);
  const run = await runOf(folder);
  const before = parseOptions(createTrainCommand(), ['node', 'train.ts'], { saved: () => run });
  const task = given.task ?? before.task;
  const { systemPrompt } = task === undefined ? {} : await importTask(task);
  const options = { ...before, systemPrompt: before.systemPrompt ?? systemPrompt, ...given };
  const backend = await initBackend(options.backend, options);
  const { model, tokenizer, notices } = await loadWithTokenizer(folder, options);
  console.log(
    [`backend: ${backend}`, `model: ${folder}${run ? `, asked as in ${run.file}` : ''}`, ...notices].join('\n'),
  );
  const own = OF_THEIR_OWN.find(([name]) => run?.experiment.includes(name));
  if (own) console.log(`(trained by ${run?.experiment} with ${own[1]})`);
  return { model, tokenizer, options, isFromRun: run !== undefined };
}

/** The run that a final_model or a checkpoint lies in, with those of its options that experiment_base has too. */
async function runOf(folder: string) {
  if (!/^(final_model|checkpoint-\d+)$/.test(basename(resolve(folder)))) return undefined;
  const file = join(dirname(folder), 'config.json');
  const config = await readJsonObject(file);
  if (typeof config?.experiment !== 'string' || typeof config.options !== 'object') return undefined;
  const known = createTrainCommand().options.map((option) => option.attributeName());
  const options = Object.entries(config.options ?? {}).filter(([key, value]) => known.includes(key) && value !== null);
  return { file, experiment: config.experiment, options: Object.fromEntries(options) };
}
