/**
 * The trainer on the command line: prompts of a file or a task, rewards of a module or a reward model.
 *
 *   npm run trainer -- --dataset prompts.jsonl --reward my_reward.ts --model-name Qwen/Qwen2.5-0.5B-Instruct
 *   npm run trainer -- --task sums --max-steps 20 --learning-rate 2.5e-4 --max-new-tokens 32
 */
import { existsSync } from 'node:fs';
import { Command, Option } from '@commander-js/extra-typings';
import * as base from '../experiment_base/train.ts';
import { runMain } from '../lib/cli/main.ts';
import { commaSeparated, examples, integer, number, parseOptions } from '../lib/cli/options.ts';
import { loadData } from '../lib/environments/task.ts';
import { UserError } from '../lib/errors.ts';
import { shown } from '../lib/text.ts';
import { importModule } from '../lib/user_module.ts';
import { ALGORITHMS, type GRPOConfig, type LossType } from './config.ts';
import type { Row } from './dataset.ts';
import { GRPOTrainer } from './grpo_trainer.ts';
import { type RewardFunction, textOf } from './rewards.ts';

const DEVICES = { auto: 'auto', cuda: 'tensorflow', webgpu: 'webgpu', cpu: 'wasm' } as const;
const names = (text: string) => text.split(',').map((name) => name.trim());

export const createCommand = () =>
  new Command('trainer')
    .description('GRPO and its variants, on prompts and rewards of your own.')
    .addHelpText(
      'after',
      examples(
        'npm run trainer -- --dataset prompts.jsonl --reward my_reward.ts --model-name Qwen/Qwen2.5-0.5B-Instruct',
        'npm run trainer -- --task sums --max-steps 20 --learning-rate 2.5e-4 --max-new-tokens 32',
      ),
    )
    .optionsGroup('Prompts and rewards:')
    .option('--model-name <name>', 'Llama or Qwen: a folder, or owner/name[@revision] on the hub', 'models/tiny')
    .option('--dataset <file>', 'JSONL with a prompt a line, a text or messages, and what the rewards need')
    .option('--eval-dataset <file>', 'the same, held out')
    .option('--task <name>', 'of tasks/, or a module: prompts and a reward, in place of --dataset')
    .option(
      '--reward <files>',
      'modules, comma-separated: each function that they export is a reward',
      commaSeparated(names),
    )
    .option('--reward-model <names>', 'models with one score on top, comma-separated', commaSeparated(names))
    .optionsGroup('GRPO:')
    .addOption(
      new Option('--loss-type <name>', 'the experiment')
        .choices(Object.keys(ALGORITHMS) as LossType[])
        .default('grpo' as const),
    )
    .option('--batch-size <n>', 'prompts a batch', integer({ min: 1, max: 65_536 }), 4)
    .option('--num-generations <n>', 'completions of each prompt', integer({ min: 2, max: 65_536 }), 4)
    .option(
      '--gradient-accumulation-steps <n>',
      'batches an update, which are sampled together',
      integer({ min: 1, max: 65_536 }),
      4,
    )
    .option('--kl-coef <x>', 'β, weight of the KL to the reference', number({ min: 0, max: 1000 }), 0.1)
    .option('--ref-model <name>', 'the reference, if not the initial policy')
    .option('--clip-range <x>', 'ε (default: as in the paper of the loss type)', number({ min: 0 }))
    .option('--num-epochs <n>', 'how often each prompt is seen', number({ above: 0 }), 3)
    .option('--max-steps <n>', 'updates (default: as many as the epochs take)', integer({ min: 1 }))
    .optionsGroup('Sampling:')
    .option('--max-new-tokens <n>', 'of a completion', integer({ min: 1 }), 256)
    .option('--temperature <x>', 'of sampling, and of the log-probs trained on', number({ min: 0.001, max: 1000 }), 1)
    .option('--top-k <n>', 'sample from the k most likely tokens (0: all)', integer({ min: 0 }), 0)
    .option('--top-p <x>', 'sample from the most likely tokens that make up p', number({ above: 0, max: 1 }), 1)
    .optionsGroup('Optimizer:')
    .option('--learning-rate <x>', "AdamW's, after the warm-up", number({ min: 0, max: 1 }), 1e-6)
    .option('--max-grad-norm <x>', 'global norm to clip the gradient to (0: no clipping)', number({ min: 0 }), 1)
    .option('--warmup-steps <n>', 'updates over which the learning rate rises', integer({ min: 0 }), 5)
    .option('--micro-batch-tokens <n>', 'completion tokens in memory at once', integer({ min: 1 }), 8192)
    .option('--lora-rank <n>', 'train an adapter of this rank (0: train all weights)', integer({ min: 0 }), 0)
    .optionsGroup('Run:')
    .option('--output-dir <folder>', "the run's folder (default: runs/trainer/<time>)")
    .option('--resume', 'continue the run in --output-dir: all other options as before')
    .option('--seed <n>', 'of data order and sampling', integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), 0)
    .option('--logging-steps <n>', 'log every so many steps', integer({ min: 1 }), 10)
    .option('--save-steps <n>', 'checkpoint every so many steps (0: at the end only)', integer({ min: 0 }), 500)
    .option('--eval-steps <n>', 'evaluate every so many steps (0: before and after only)', integer({ min: 0 }), 0)
    .option('--eval-size <n>', 'held-out prompts of a --task', integer({ min: 0 }), 100)
    .option('--report-to <names>', 'tensorboard, wandb', commaSeparated(names))
    .option('--use-wandb', 'report to Weights & Biases, with the key in WANDB_API_KEY')
    .option('--wandb-project <name>', 'there (default: grpo-ts)')
    .option('--wandb-run-name <name>', "there (default: as the run's folder)")
    .addOption(
      new Option('--device <name>', 'what computes')
        .choices(Object.keys(DEVICES) as (keyof typeof DEVICES)[])
        .default('auto' as const),
    )
    .option('--threads <n>', 'of the CPU (default: one for each core, at most 8)', integer({ min: 1, max: 64 }))
    .option('--config <file>', 'YAML or JSON with values of these options; the command line overrides them')
    .helpOption('-h, --help', 'display help for command');

export type Options = ReturnType<ReturnType<typeof createCommand>['opts']>;

/** The command line under the names that the trainer has. */
export function configOf(options: Options): GRPOConfig {
  const { batchSize, gradientAccumulationSteps: batches, useWandb, reportTo = [], device, ...rest } = options;
  const { dataset, evalDataset, task, reward, rewardModel, refModel, modelName, resume, config, evalSize, ...args } =
    rest;
  // A step is as many batches as make an update.
  const sizes = { batchSize: batchSize * batches, miniBatchSize: batchSize * options.numGenerations };
  const reporters = [...new Set([...reportTo, ...(useWandb ? ['wandb'] : [])])];
  return { ...args, ...sizes, gradientAccumulationSteps: batches, reportTo: reporters, backend: DEVICES[device] };
}

/**
 * The functions that modules export, whatever their names.
 * @throws {UserError} if there is no such module, or no function in it
 */
export async function importRewards(files: string[]): Promise<RewardFunction[]> {
  const found = await Promise.all(
    files.map(async (file) => {
      if (!existsSync(file)) throw new UserError(`--reward ${file}: there is no such file`);
      const module = await importModule(file, `--reward ${file}`);
      const functions = Object.values(module).filter((value) => typeof value === 'function');
      if (functions.length > 0) return functions as RewardFunction[];
      throw new UserError(`--reward ${file} must export a function, found ${shown(Object.keys(module))}`);
    }),
  );
  return found.flat();
}

/** The problems of a task as rows, and its rule as a reward. */
async function loadTask(name: string, options: Options) {
  const bundled = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
  const { train, test } = await loadData(
    { ...options, task: name, dataset: options.dataset ?? bundled.train },
    bundled,
  );
  const defaults = base.createCommand().opts();
  const rowOf = ({ question, task, ...problem }: (typeof train)[number]): Row => ({
    prompt: [
      { role: 'system', content: task?.systemPrompt ?? base.SYSTEM_PROMPT },
      { role: 'user', content: question },
    ],
    ...problem.columns,
    ...{ question, answer: problem.answer, problem: { question, ...problem, task } },
  });
  const rule: RewardFunction = ({ completions, problem }) =>
    completions.map((completion, i) => base.reward(textOf(completion), problem[i] as (typeof train)[number], defaults));
  return { train: train.map(rowOf), test: test.map(rowOf), rule };
}

/**
 * The trainer that a command line asks for.
 * @throws {UserError} if prompts or rewards are missing, or cannot be loaded
 */
export async function createTrainer(options: Options): Promise<GRPOTrainer> {
  const task = options.task === undefined ? undefined : await loadTask(options.task, options);
  const trainDataset = task?.train ?? options.dataset;
  if (trainDataset === undefined) throw new UserError('there are no prompts: name a file with --dataset, or a --task');
  const own = [...(await importRewards(options.reward ?? [])), ...(options.rewardModel ?? [])];
  // A task's rule is the reward; beside others it only watches.
  const rewardFuncs = task ? [...own, task.rule] : own;
  const rewardWeights = rewardFuncs.map((reward) => Number(own.length === 0 || reward !== task?.rule));
  if (rewardFuncs.length === 0) {
    throw new UserError('there is no reward: name a module with --reward, a --reward-model, or a --task that has one');
  }
  if (options.resume && options.outputDir === undefined) {
    throw new UserError('--resume continues the run in --output-dir: name that folder');
  }
  const evalDataset = task?.test ?? options.evalDataset;
  return new GRPOTrainer({
    ...{ model: options.modelName, rewardFuncs, args: { ...configOf(options), rewardWeights }, trainDataset },
    ...(evalDataset === undefined || evalDataset.length === 0 ? {} : { evalDataset }),
    ...(options.refModel === undefined ? {} : { refModel: options.refModel }),
  });
}

async function main(): Promise<void> {
  const options = parseOptions(createCommand());
  await (await createTrainer(options)).train({ resumeFromCheckpoint: options.resume ?? false });
}

await runMain(import.meta.url, main);
