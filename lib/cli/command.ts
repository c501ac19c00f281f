/** The command line of a run. */
import { Command, Help, InvalidArgumentError, Option, type OptionValues } from '@commander-js/extra-typings';
import { today } from '../checkpoint/chat_template.ts';
import { SAVE_DTYPES } from '../checkpoint/checkpoint.ts';
import { isObject } from '../json.ts';
import { LORA_TARGETS, type LoraTarget } from '../model/lora.ts';
import { findRun } from '../run/find_run.ts';
import { REPORTERS, type ReporterName } from '../run/reporters.ts';
import { SCHEDULES } from '../training/schedule.ts';
import { backendOptions } from './backend_options.ts';
import { commaSeparated, integer, number, parseOptions, type Saved } from './options.ts';

/** What comes after it is the experiment's. */
const LAST_GROUP = 'Backend:';

/** Values of options that depend on the experiment. */
export type RunDefaults = {
  modelName?: string;
  loraRank?: number;
  evalSize?: number;
  evalSamples?: number;
  dataset: string;
  maxSteps: number;
  evalSteps: number;
  maxNewTokens: number;
  learningRate: number;
};

/**
 * A command with the options that every run has, whatever its algorithm, under headings for `--help`; an experiment adds
 * its own, under one more.
 * @param experiment - its folder
 * @param defaults - what it does unless told otherwise
 */
export const createRunCommand = (
  experiment: string,
  { modelName = 'models/tiny', loraRank = 0, evalSize = 200, evalSamples = 8, ...defaults }: RunDefaults,
) =>
  new Command(experiment)
    .configureHelp({ groupItems })
    .optionsGroup('Model:')
    .option('--model-name <name>', 'Llama or Qwen: a folder, or owner/name[@revision] on the hub', modelName)
    .option('--lora-rank <n>', 'train an adapter of this rank (0: train all weights)', integer({ min: 0 }), loraRank)
    .option(
      '--lora-alpha <x>',
      'its output is scaled by alpha / rank (default: twice the rank)',
      number({ min: 1e-6, max: 1e6 }),
    )
    .option(
      '--lora-target <names>',
      'the projections that get one, or all-linear (default: all)',
      commaSeparated(loraTargets),
    )
    .option('--merge-adapter', 'write final_model as a whole model, with the adapter merged into it')
    .addOption(
      new Option('--save-dtype <name>', 'of final_model (auto: as the model that went in)')
        .choices(SAVE_DTYPES)
        .default('auto' as const),
    )
    .option('--gradient-checkpointing', 'less memory, more time: run each layer again for its gradient')
    .optionsGroup('Data and steps:')
    .option('--dataset <file>', 'JSONL with a question and an answer a line', defaults.dataset)
    .option('--eval-dataset <file>', 'held-out JSONL (default: the bundled one, or --eval-size lines of --dataset)')
    .option('--question-column <name>', 'the column of the data sets that holds the question', 'question')
    .option('--answer-column <name>', 'the column that holds the answer', 'answer')
    .option('--eval-size <n>', 'held-out problems (0: no evaluation at all)', integer({ min: 0 }), evalSize)
    .option(
      '--eval-steps <n>',
      'evaluate every so many steps (0: before and after only)',
      integer({ min: 0 }),
      defaults.evalSteps,
    )
    .option(
      '--eval-samples <n>',
      'samples of each held-out problem, before and after, for pass@k (0: none)',
      integer({ min: 0, max: 1024 }),
      evalSamples,
    )
    .option('--no-eval-on-start', 'no evaluation before the first step')
    .option(
      '--max-steps <n>',
      'steps: each samples once and updates at least once',
      integer({ min: 1 }),
      defaults.maxSteps,
    )
    .optionsGroup('Prompt:')
    .option('--system-prompt <text>', "instructions before the question, in place of the experiment's (empty: none)")
    .option('--merge-system-prompt', "put them into the user's message, for a chat template without a system role")
    .option(
      '--chat-template-kwargs <json>',
      'variables for the chat template, as {"enable_thinking": false}',
      jsonObject,
    )
    .option(
      '--template-date <date>',
      'the day that a chat template is told (default: that of the start)',
      date,
      today(),
    )
    .optionsGroup('Sampling:')
    .option(
      '--max-new-tokens <n>',
      "of a completion, tools' answers included",
      integer({ min: 1 }),
      defaults.maxNewTokens,
    )
    .option('--temperature <x>', 'of sampling, and of the log-probs trained on', number({ min: 0.001, max: 1000 }), 1)
    .option('--top-k <n>', 'sample from the k most likely tokens (0: all)', integer({ min: 0 }), 0)
    .option('--top-p <x>', 'sample from the most likely tokens that make up p', number({ above: 0, max: 1 }), 1)
    .optionsGroup('Optimizer:')
    .option('--learning-rate <x>', "AdamW's, after the warm-up", number({ min: 0, max: 1 }), defaults.learningRate)
    .addOption(new Option('--lr-scheduler <name>', 'after the warm-up').choices(SCHEDULES).default('linear' as const))
    .option('--warmup-steps <n>', 'updates over which the learning rate rises', integer({ min: 0 }), 5)
    .option('--weight-decay <x>', 'decoupled; norms do not decay', number({ min: 0, max: 1 }), 0)
    .option('--max-grad-norm <x>', 'global norm to clip the gradient to (0: no clipping)', number({ min: 0 }), 1)
    .option('--micro-batch-tokens <n>', 'completion tokens in memory at once', integer({ min: 1 }), 8192)
    .optionsGroup('Run:')
    .option('--output-dir <folder>', `the run's folder (default: runs/${experiment}/<time>)`)
    .option('--seed <n>', 'of data order, sampling and shuffling', integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), 0)
    .option('--logging-steps <n>', 'log every so many steps', integer({ min: 1 }), 1)
    .option('--save-steps <n>', 'checkpoint every so many steps (0: at the end only)', integer({ min: 0 }), 25)
    .option('--save-total-limit <n>', 'checkpoints to keep', integer({ min: 1 }), 2)
    .option(
      '--report-to <names>',
      'where metrics go besides its folder: tensorboard, wandb (default: none)',
      commaSeparated(reporterNames),
    )
    .option('--wandb-project <name>', 'on Weights & Biases, with the key in WANDB_API_KEY (default: grpo-ts)')
    .option('--wandb-run-name <name>', "what it is called there (default: as the run's folder)")
    .option('--resume <run>', 'continue: the folder of a run or of a checkpoint, or "latest"')
    .option('--config <file>', 'YAML or JSON with values of these options; the command line overrides them')
    .helpOption('-h, --help', 'display help for command')
    .optionsGroup(LAST_GROUP)
    .addOption(backendOptions.backend())
    .addOption(backendOptions.gpu())
    .addOption(backendOptions.threads())
    .addOption(backendOptions.blas())
    .addOption(backendOptions.kernels());

/** For `--help`: the options of the algorithm come first. */
function groupItems<Item extends Command | Option>(...parameters: Parameters<typeof Help.prototype.groupItems<Item>>) {
  const groups = [...Help.prototype.groupItems<Item>(...parameters)];
  const last = groups.findIndex(([heading]) => heading === LAST_GROUP);
  return new Map([...groups.slice(last + 1), ...groups.slice(0, last + 1)]);
}

/** The text of a JSON object, on one line. */
function jsonObject(text: string): string {
  try {
    const value: unknown = JSON.parse(text);
    if (isObject(value)) return JSON.stringify(value);
  } catch {}
  throw new InvalidArgumentError('it must be a JSON object, as {"enable_thinking": false}');
}

/** A day, as 2026-07-26. */
function date(text: string): string {
  const time = new Date(`${text}T00:00:00Z`);
  if (!Number.isNaN(time.getTime()) && time.toISOString().slice(0, 10) === text) return text;
  throw new InvalidArgumentError('it must be a day such as 2026-07-26');
}

/** Comma-separated names of reporters, or none. */
function reporterNames(text: string): ReporterName[] {
  const names = text.split(',').map((name) => name.trim());
  const isKnown = (name: string): name is ReporterName => (REPORTERS as readonly string[]).includes(name);
  if (names.every(isKnown)) return names;
  if (text === 'none' || text === '') return [];
  throw new InvalidArgumentError(`it must be none, or some of ${REPORTERS.join(',')}`);
}

/** Comma-separated names of projections, of which `all-linear` stands for all. */
function loraTargets(text: string): LoraTarget[] {
  const names = text === 'all-linear' ? [...LORA_TARGETS] : text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !(LORA_TARGETS as readonly string[]).includes(name));
  if (unknown === undefined) return names as LoraTarget[];
  throw new InvalidArgumentError(`it must be all-linear, or some of ${LORA_TARGETS.join(',')}; found "${unknown}"`);
}

/**
 * Parses the command line of a run: {@link parseOptions}, where `--resume` brings the options of the run it names.
 * @param command - from {@link createRunCommand}
 * @param hooks.repeated - is given the options so far, and finds those of the run that another option names
 */
export const parseRunOptions = <Options extends OptionValues>(
  command: Command<[], Options>,
  argv?: string[],
  { repeated = () => undefined }: { repeated?: (options: Options) => Saved | undefined } = {},
): Options =>
  parseOptions(command, argv, {
    saved: (options) => {
      const { resume, outputDir }: { resume?: string; outputDir?: string } = options;
      return resume === undefined ? repeated(options) : findRun(resume, { experiment: command.name(), outputDir });
    },
  });

/** The options of a command, as they are parsed. */
export type OptionsOf<Create extends () => Command<[], OptionValues>> = ReturnType<ReturnType<Create>['opts']>;
