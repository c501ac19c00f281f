/** The options of the trainer, under the names that TRL's GRPOConfig has in Python, in camelCase. */
import * as base from '../experiment_base/train.ts';
import * as cispo from '../experiment_cispo/train.ts';
import * as dapo from '../experiment_dapo/train.ts';
import * as drgrpo from '../experiment_drgrpo/train.ts';
import * as gspo from '../experiment_gspo/train.ts';
import * as tool from '../experiment_multiturn_tool/train.ts';
import * as rloo from '../experiment_rloo/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { asText, kebab } from '../lib/run/saved_options.ts';
import { shown } from '../lib/text.ts';

/** What the trainer takes from an experiment: its options, its advantages, its update. */
export type Algorithm = Pick<typeof base, 'createCommand' | 'toExperience' | 'update' | 'rolloutMetrics'>;

/** The experiment behind each loss type: what it computes is written there, and nowhere else. */
export const ALGORITHMS = {
  grpo: base,
  dr_grpo: drgrpo,
  rloo,
  dapo,
  gspo,
  cispo,
} as Record<LossType, unknown> as Record<LossType, Algorithm>;

/** With tools, what they write is not trained on: an experiment of its own, of which there is GRPO alone. */
const WITH_TOOLS = tool as unknown as Algorithm;

/**
 * The experiment behind a run.
 * @throws {UserError} if there is none
 */
export function algorithmOf(lossType: LossType, { hasTools }: { hasTools: boolean }): Algorithm {
  if (!Object.hasOwn(ALGORITHMS, lossType)) {
    throw new UserError(`lossType must be one of ${Object.keys(ALGORITHMS).join(', ')}, found ${shown(lossType)}`);
  }
  if (!hasTools) return ALGORITHMS[lossType];
  if (lossType === 'grpo') return WITH_TOOLS;
  throw new UserError(`lossType ${lossType} has no conversations with tools: take grpo, or no tools`);
}

export type LossType = 'grpo' | 'dr_grpo' | 'rloo' | 'dapo' | 'gspo' | 'cispo';

/**
 * Options of a run; what is not given is as in the experiment of that loss type. README.md has TRL's names beside them.
 * Some have a second name, by which others call them: `klCoef`, `clipRange`, `numEpochs`, `maxNewTokens`,
 * `numGenerationsPerPrompt`.
 */
export type GRPOConfig = Named & { [Alias in keyof typeof ALIASES]?: Named[(typeof ALIASES)[Alias]] };

/** Second names. */
const ALIASES = {
  klCoef: 'beta',
  clipRange: 'epsilon',
  numEpochs: 'numTrainEpochs',
  maxNewTokens: 'maxCompletionLength',
  numGenerationsPerPrompt: 'numGenerations',
} as const;

type Named = {
  /** which experiment's advantages and loss; default `grpo` */
  lossType?: LossType;
  /** prompts a step, P; default 32 */
  batchSize?: number;
  /** completions of each prompt, G; default 8 */
  numGenerations?: number;
  /** passes over the completions of a step, μ; default 1 */
  numIterations?: number;
  /** completions a mini-batch; default all of the step */
  miniBatchSize?: number;
  /** mini-batches an update; default 1 */
  gradientAccumulationSteps?: number;
  /** weight of the KL to the reference, β; default 0, for which there is no reference */
  beta?: number;
  /** how far the ratio may fall below 1, ε */
  epsilon?: number;
  /** how far it may rise above 1; default as `epsilon`, or as in the paper */
  epsilonHigh?: number;
  /** steps; default: as many as `numTrainEpochs` take */
  maxSteps?: number;
  /** how often each prompt is seen; default 3 */
  numTrainEpochs?: number;
  /** default 1e-6 */
  learningRate?: number;
  lrSchedulerType?: string;
  warmupSteps?: number;
  weightDecay?: number;
  maxGradNorm?: number;
  /** tokens of a completion; default 256 */
  maxCompletionLength?: number;
  temperature?: number;
  topK?: number;
  topP?: number;
  /** weights of the reward functions, in their order; default 1 each */
  rewardWeights?: number[];
  /** seconds that a reward function may take for the completions of a step; default 600 */
  rewardTimeout?: number;
  /** the run's folder; default runs/trainer/<time> */
  outputDir?: string;
  seed?: number;
  loggingSteps?: number;
  /** checkpoint every so many steps; 0: at the end only */
  saveSteps?: number;
  saveTotalLimit?: number;
  /** evaluate every so many steps; 0: before and after only */
  evalSteps?: number;
  /** samples of each prompt of `evalDataset`, before and after */
  evalSamples?: number;
  evalOnStart?: boolean;
  /** DAPO's: rounds in which flat groups are sampled anew; tokens before the limit that cost reward */
  maxResamples?: number;
  overlongCache?: number;
  /** of a conversation with tools: turns, tokens of a turn and of a tool's answer, seconds of a call */
  maxTurns?: number;
  maxTurnTokens?: number;
  maxToolTokens?: number;
  toolTimeout?: number;
  gradientCheckpointing?: boolean;
  /** completion tokens in memory at once */
  microBatchTokens?: number;
  loraRank?: number;
  loraAlpha?: number;
  loraTarget?: string[];
  /** where metrics go besides the run's folder: `tensorboard`, `wandb` */
  reportTo?: string | string[];
  wandbProject?: string;
  wandbRunName?: string;
  backend?: string;
  threads?: number;
  /** variables of the chat template, and the day that it is told, as 2026-07-26 (default: that of the start) */
  chatTemplateKwargs?: Record<string, unknown>;
  templateDate?: string;
};

/** Seconds that a reward function may take, unless it is told otherwise. */
export const REWARD_TIMEOUT = 600;

/** What the experiments call each option; null: it is the trainer's own. */
const NAMES: Record<keyof Named, string | null> = {
  batchSize: 'batchSize',
  numGenerations: 'numGenerations',
  numIterations: 'numIterations',
  miniBatchSize: 'miniBatchSize',
  gradientAccumulationSteps: 'gradientAccumulationSteps',
  learningRate: 'learningRate',
  warmupSteps: 'warmupSteps',
  weightDecay: 'weightDecay',
  maxGradNorm: 'maxGradNorm',
  temperature: 'temperature',
  topK: 'topK',
  topP: 'topP',
  outputDir: 'outputDir',
  seed: 'seed',
  loggingSteps: 'loggingSteps',
  saveSteps: 'saveSteps',
  saveTotalLimit: 'saveTotalLimit',
  evalSteps: 'evalSteps',
  evalSamples: 'evalSamples',
  evalOnStart: 'evalOnStart',
  maxTurns: 'maxTurns',
  maxTurnTokens: 'maxTurnTokens',
  maxToolTokens: 'maxToolTokens',
  toolTimeout: 'toolTimeout',
  gradientCheckpointing: 'gradientCheckpointing',
  microBatchTokens: 'microBatchTokens',
  loraRank: 'loraRank',
  loraAlpha: 'loraAlpha',
  loraTarget: 'loraTarget',
  reportTo: 'reportTo',
  wandbProject: 'wandbProject',
  wandbRunName: 'wandbRunName',
  backend: 'backend',
  threads: 'threads',
  maxResamples: 'maxResamples',
  overlongCache: 'overlongCache',
  chatTemplateKwargs: 'chatTemplateKwargs',
  templateDate: 'templateDate',
  beta: 'klCoef',
  epsilon: 'clipRange',
  epsilonHigh: 'clipRangeHigh',
  lrSchedulerType: 'lrScheduler',
  maxCompletionLength: 'maxNewTokens',
  lossType: null,
  maxSteps: null,
  numTrainEpochs: null,
  rewardWeights: null,
  rewardTimeout: null,
};

/** Where TRL's defaults differ from those of the experiments, which are made for the bundled model. */
const DEFAULTS: Named = { learningRate: 1e-6, maxCompletionLength: 256 };

/**
 * The options of a run, as the experiment of its loss type parses them.
 * @param args - as the user gives them
 * @param given.modelName - what is trained
 * @param given.prompts - how many there are to train on, of which epochs are made
 * @param given.hasTools - whether the policy may call tools
 * @throws {UserError} naming an option that is not known, or has no such value
 */
export function optionsOf(
  args: GRPOConfig,
  given: { modelName: string; prompts: number; resume?: string | undefined; hasTools?: boolean },
): base.Options {
  const { modelName, prompts, resume, hasTools = false } = given;
  const { lossType = 'grpo', ...config } = { ...DEFAULTS, ...named(args) };
  const { numTrainEpochs: epochs = 3, rewardTimeout: timeout = REWARD_TIMEOUT } = config;
  if (!(epochs > 0)) throw new UserError(`args.numTrainEpochs must be above 0, found ${shown(epochs)}`);
  if (!(timeout > 0 && timeout <= 1e6)) {
    throw new UserError(`args.rewardTimeout must be a number of seconds up to 1000000, found ${String(timeout)}`);
  }
  const command = algorithmOf(lossType, { hasTools }).createCommand();
  const known = command.options.map((option) => option.attributeName());
  const flags = command.options.map((option) => option.long);
  const line = Object.entries(config).flatMap(([name, value]) => {
    const option = Object.hasOwn(NAMES, name) ? NAMES[name as keyof Named] : undefined;
    if (value === undefined || option === null) return [];
    if (option === undefined || !known.includes(option)) {
      const alias = Object.entries(ALIASES).find(([other, first]) => first === name && Object.hasOwn(args, other));
      throw new UserError(
        `args: there is no option ${shown(alias?.[0] ?? name)} for lossType ${lossType}: see GRPOConfig`,
      );
    }
    if (typeof value === 'boolean') {
      const flag = `--${value ? '' : 'no-'}${kebab(option)}`;
      return flags.includes(flag) ? [flag] : []; // else it is as it is unless told otherwise
    }
    const text = Array.isArray(value)
      ? value.join(',')
      : typeof value === 'object'
        ? JSON.stringify(value)
        : asText(value);
    return [`--${kebab(option)}=${text}`];
  });
  const batchSize = Number(config.batchSize ?? parseOptions(command, ['node', 'trainer']).batchSize);
  const maxSteps = config.maxSteps ?? Math.max(1, Math.ceil((epochs * prompts) / batchSize));
  const own = [`--model-name=${modelName}`, `--max-steps=${maxSteps}`, ...(resume ? [`--resume=${resume}`] : [])];
  try {
    return parseOptions(command, ['node', 'trainer', ...line, ...own]);
  } catch (error) {
    throw error instanceof UserError ? new UserError(`args: ${error.message}`) : error;
  }
}

/** Options under their first names. */
function named(args: GRPOConfig): Named {
  const given = Object.entries(args).filter(([, value]) => value !== undefined);
  const entries = given.map(([name, value]) => {
    const first = Object.hasOwn(ALIASES, name) ? ALIASES[name as keyof typeof ALIASES] : name;
    if (first === name || args[first as keyof Named] === undefined) return [first, value];
    throw new UserError(`args: ${name} and ${first} are the same: give one of them`);
  });
  return Object.fromEntries(entries);
}
