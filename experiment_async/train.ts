/**
 * Asynchronous GRPO: samplers and the trainer do not wait for each other. A batch was sampled by a policy that is some steps
 * older than the one it trains; importance sampling makes up for that, as far as it can (Hilton et al. 2022, "Batch size-
 * invariance for policy optimization"; AReaL, Fu et al. 2025, section 5).
 *
 * Differs from experiment_base/train.ts in: EXPERIMENT, SHOWN, createCommand, OffPolicy, importanceWeights, Experience,
 * toExperience, LossInputs, grpoLoss, lossInputs, sampleFrom, asSampler, main.
 *
 *   node --import tsx experiment_async/train.ts             a sampler process, and a trainer
 *   node --import tsx experiment_async/train.ts --help      all options
 *
 * What is simplified: as in experiment_base; and a sampler samples the whole batch of a step, of which all rows end
 * before it is trained on.
 */
import { Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { type Completion, generate } from '../lib/generation/generate.ts';
import type { Model } from '../lib/model/model.ts';

import type { Communicator } from '../lib/distributed/communicator.ts';
import { isSampler } from '../lib/distributed/samplers.ts';
import { accumulateGradients } from '../lib/training/gradients.ts';
import { completionLogProbs, logProbsOf, microBatches, padRows } from '../lib/training/log_probs.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import { scheduleFactor } from '../lib/training/schedule.ts';
import type { TrainingState } from '../lib/training/state.ts';

import { sameAnswer, type Verdict } from '../lib/environments/answers.ts';
import { itemsOfStep, type Problem } from '../lib/environments/dataset.ts';
import { finiteReward } from '../lib/environments/reward.ts';
import { loadData } from '../lib/environments/task.ts';
import { checkAsync, chosenMode } from './options.ts';
import {
  type Batch,
  createSource,
  planOf,
  repeatedRun,
  type Sample,
  serveRanks,
  serveSamples,
  versionsOf,
  writeOlder,
} from './sampling.ts';
import { createTimeline, stalenessMetrics } from './timeline.ts';

import { createRunCommand, type OptionsOf, parseRunOptions } from '../lib/cli/command.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number } from '../lib/cli/options.ts';
import { runRanks } from '../lib/cli/ranks.ts';
import { permutation, uniform } from '../lib/random.ts';
import { type Asking, accuracies, type Evaluation, passAtK } from '../lib/run/evaluation.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { startRun } from '../lib/run/start.ts';
import { inGroups, mean, sampleStd, sum } from '../lib/statistics.ts';
import { BACKENDS } from '../lib/backend/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_async';
const SHOWN = {
  ...{
    reward: 'reward',
    'held-out accuracy': 'eval/accuracy',
    staleness: 'staleness/mean',
    'tokens/s': 'tokens_per_second',
  },
};
const SUMS = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
const DEFAULTS = { dataset: SUMS.train, maxSteps: 200, evalSteps: 25, maxNewTokens: 32, learningRate: 2.5e-4 };

/** The algorithm's own options, beside those that every run has. */
export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS)
    .description('Asynchronous GRPO: samplers and the trainer do not wait for each other.')
    .addHelpText(
      'after',
      examples(
        `node --import tsx ${EXPERIMENT}/train.ts --samplers 2 --max-staleness 4`,
        `node --import tsx ${EXPERIMENT}/train.ts --mode sync`,
      ),
    )
    .optionsGroup('Sampling beside training:')
    .addOption(
      new Option('--mode <name>', 'sync: this process samples, then trains')
        .choices(['sync', 'async'])
        .default('async' as const),
    )
    .option('--samplers <n>', 'processes that sample', integer({ min: 1, max: 64 }), 1)
    .option('--max-staleness <k>', 'steps by which a batch may be older (0: as --mode sync)', integer({ min: 0 }), 2)
    .option('--weight-sync-steps <n>', 'samplers get new weights every so many steps', integer({ min: 1 }), 1)
    .option('--in-flight', 'samplers take new weights in the middle of completions, too')
    .option('--lag <k>', 'no samplers: every batch with weights that are k steps old', integer({ min: 0 }))
    .option('--schedule <file>', "no samplers: as a run's schedule.jsonl says, to the bit")
    .option('--sampler-threads <n>', 'of each (default: its share of the cores)', integer({ min: 1, max: 64 }))
    .addOption(new Option('--sampler-backend <name>', 'of the samplers (default: as --backend)').choices(BACKENDS))
    .option('--sampler-gpu <gpu>', "of the samplers: index, or a part of the name; --gpu is the trainer's")
    .option('--share-gpu', 'let samplers and trainer have the same GPU')
    .addOption(
      new Option('--reference <where>', 'with --kl-coef: whose device holds the reference')
        .choices(['trainer', 'sampler'])
        .default('trainer' as const),
    )
    .optionsGroup('Off-policy:')
    .addOption(
      new Option('--importance-sampling <kind>', 'weights of stale tokens; none: all 1')
        .choices(['none', 'truncated', 'masked'])
        .default('truncated' as const),
    )
    .addOption(
      new Option('--importance-level <name>', 'the ratio of each token, or of a whole completion')
        .choices(['token', 'sequence'])
        .default('token' as const),
    )
    .option('--importance-cap <x>', 'C, the largest weight', number({ min: 1, max: 1e6 }), 2)
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1, max: 65_536 }), 32)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2, max: 65_536 }), 8)
    .option('--num-iterations <n>', 'μ, passes over a step (1 update clips nothing)', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }))
    .option('--task <name>', 'of tasks/, or a module: data, prompt and rules (default: --dataset)')
    .option('--format-reward <x>', 'for a wrong answer in its tags', number({ min: 0, max: 1 }), 0.1);

export type Options = OptionsOf<typeof createCommand>;

// ─── Task: prompt and reward ─────────────────────────────────────────────────────────────────────────────────────────

export const SYSTEM_PROMPT =
  'Solve the problem. Work step by step inside <think></think>, then give the final answer alone inside <answer></answer>.';

/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(tokenizer: Tokenizer, { question, task }: Problem, options: Options): number[] {
  const system = { role: 'system', content: options.systemPrompt ?? task?.systemPrompt ?? SYSTEM_PROMPT };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

/** What became of the answer, the last in its tags. Accuracies count the right ones, whatever is rewarded. */
export function verdict(text: string, { answer, task }: Pick<Problem, 'answer' | 'task'>): Verdict {
  const given = [...text.matchAll(/<answer>(.*?)<\/answer>/gs)].at(-1)?.[1].trim();
  return task?.verdict?.(text) ?? (!given ? 'missing' : sameAnswer(given, answer) ? 'right' : 'wrong');
}

/** The rule that says how good a completion is. A wrong answer in its tags gets a little, as a hint towards the format. */
export function reward(text: string, problem: Pick<Problem, 'answer' | 'task'>, { formatReward }: Options): number {
  return problem.task?.reward?.(text) ?? { right: 1, wrong: formatReward, missing: 0 }[verdict(text, problem)];
}

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A completion of a problem, and what it was worth. */
export type Rollout = {
  problem: Problem;
  prompt: number[]; // token ids
  completion: number[]; // token ids, with the one that ended it
  oldLogProbs: number[]; // log π_old of each completion token, as the sampler recorded it
  text: string;
  finishReason: Completion['finishReason'];
  reward: number;
  verdict: Verdict; // which accuracies count
};

/** The random number in [0, 1) of one token: it depends on what it is drawn for, not on what else is in the batch. */
export type Draw = (problem: number, sample: number, position: number) => number;

/** Samples G completions of each problem and rewards them: P · G rollouts, those of problem 0 first. */
export async function rollout(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  draw: Draw,
  options: Options,
): Promise<Rollout[]> {
  const G = options.numGenerations;
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem, options));
  const completions = await generate(model, prompts, G, {
    ...options,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => draw(Math.floor(row / G), row % G, position),
  });
  return completions.map(({ tokens, logProbs, finishReason }, row) => {
    const [problem, prompt] = [problems[Math.floor(row / G)], prompts[Math.floor(row / G)]];
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    const graded = { verdict: verdict(text, problem), reward: finiteReward(reward(text, problem, options), problem) };
    return { problem, prompt, completion: tokens, oldLogProbs: logProbs, text, finishReason, ...graded };
  });
}

// ─── GRPO ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Advantages of G completions of one prompt, relative to their own group: A = (r − mean) / (std + 1e-8), with the
 * sample standard deviation, n − 1 (DeepSeekMath, section 4.1.2).
 * @param rewards - one reward a completion, shape (P, G)
 * @returns advantages, shape (P, G); a group whose rewards are all equal gets zeros
 * @throws {RangeError} if G < 2: a group of one has nothing to be compared with
 */
export function groupAdvantages(rewards: number[][]): number[][] {
  return rewards.map((group) => {
    if (group.length < 2) throw new RangeError(`a group needs at least 2 rewards, found ${group.length}`);
    if (group.every((r) => r === group[0])) return group.map(() => 0);
    return group.map((r) => (r - mean(group)) / (sampleStd(group) + 1e-8));
  });
}

// ─── Off-policy ──────────────────────────────────────────────────────────────────────────────────────────────────────

/** How a stale sample is weighted. */
export type OffPolicy = Pick<Options, 'importanceSampling' | 'importanceLevel' | 'importanceCap'>;

/**
 * How much each token of a completion counts, that was sampled by μ, an older policy than π_prox, with which the step begins:
 * w = min(π_prox / μ, C), or 0 above C where that is `masked`; the ratio of a token, or the product of all of them.
 * @returns shape (T): the ratios, and the weights that become of them
 */
export function importanceWeights(
  proxLogProbs: number[],
  behaviorLogProbs: number[],
  { importanceSampling, importanceLevel, importanceCap }: OffPolicy,
): { weights: number[]; ratios: number[] } {
  const differences = proxLogProbs.map((logProb, t) => logProb - behaviorLogProbs[t]);
  const whole = Math.min(700, sum(differences)); // e^710 is no number any more
  const ratios = differences.map((difference) => Math.exp(importanceLevel === 'token' ? difference : whole));
  const cut = importanceSampling === 'masked' ? 0 : importanceCap;
  const limited = (ratio: number) => (ratio <= importanceCap ? ratio : cut);
  return { ratios, weights: ratios.map((ratio) => (importanceSampling === 'none' ? 1 : limited(ratio))) };
}

/** A rollout, and what it teaches. */
export type Experience = Omit<Rollout, 'oldLogProbs'> & {
  oldLogProbs: number[]; // log π_prox of each completion token: of the policy with which the step begins
  versions: number[]; // of the policy that sampled each token: after how many steps
  ratios: number[]; // π_prox / μ
  weights: number[]; // what becomes of these
  advantage: number;
  refLogProbs?: number[] | undefined; // log π_ref of each completion token; only if β > 0
};

/** What a batch teaches: its advantages, how likely policy and reference find each token, and how much that counts. */
export async function toExperience(
  { rollouts, switches, ...batch }: Pick<Batch<Rollout>, 'rollouts' | 'switches' | 'refLogProbs'>,
  { policy, reference, step }: { policy: Model; reference: Model | undefined; step: number },
  options: Options,
): Promise<Experience[]> {
  const rewards = rollouts.map(({ reward }) => reward);
  const advantages = groupAdvantages(inGroups(rewards, options.numGenerations)).flat();
  const refLogProbs = batch.refLogProbs ?? (reference ? await logProbsOf(reference, rollouts, options) : []);
  const isStale = switches[0][1] < step - 1; // else it is the policy itself that sampled, and has said how likely it was
  const proxLogProbs = isStale ? await logProbsOf(policy, rollouts, options) : [];
  return rollouts.map((rollout, i) => {
    const oldLogProbs = proxLogProbs[i] ?? rollout.oldLogProbs;
    const { weights, ratios } = importanceWeights(oldLogProbs, rollout.oldLogProbs, options);
    const versions = versionsOf(switches, oldLogProbs.length);
    return {
      ...rollout,
      oldLogProbs,
      versions,
      ratios,
      weights,
      advantage: advantages[i],
      refLogProbs: refLogProbs[i],
    };
  });
}

/** B completions as the loss sees them, padded to T tokens. */
export type LossInputs = {
  logProbs: tf.Tensor2D; // (B, T), under the policy in training
  oldLogProbs: tf.Tensor2D; // (B, T), under the policy with which the step begins
  weights: tf.Tensor2D; // (B, T), of importance sampling; constants
  refLogProbs?: tf.Tensor2D | undefined; // (B, T), under the reference; only if β > 0
  advantages: tf.Tensor2D; // (B, 1), one a completion
  mask: tf.Tensor2D; // (B, T), 1 on tokens that the policy chose, 0 elsewhere
};

/** `completions`: of the whole update, of which the B of a micro-batch may be a part. */
export type LossOptions = Pick<Options, 'clipRange' | 'clipRangeHigh' | 'klCoef'> & { completions: number };

/**
 * GRPO's loss (DeepSeekMath, eqs. 3 and 4): for each token, the clipped surrogate, times its importance weight, plus β times
 * the KL to the reference; the mean over each completion's tokens; the mean over all completions of the update.
 */
export function grpoLoss(
  { logProbs, oldLogProbs, weights, refLogProbs, advantages, mask }: LossInputs,
  { clipRange, clipRangeHigh = clipRange, klCoef, completions }: LossOptions,
): tf.Scalar {
  const ratio = logProbs.sub(oldLogProbs).exp(); // (B, T), ρ = π / π_prox
  const clipped = ratio.clipByValue(1 - clipRange, 1 + clipRangeHigh);
  const surrogate = ratio.mul(advantages).minimum(clipped.mul(advantages)).mul(weights).neg();
  const perToken = refLogProbs ? surrogate.add(k3(logProbs, refLogProbs).mul(klCoef)) : surrogate;
  const perCompletion = perToken.mul(mask).sum(1).div(mask.sum(1)); // (B)
  return perCompletion.sum().div(completions);
}

/** An estimate of the KL to the reference that is never negative: e^d − d − 1, d = log π_ref − log π (Schulman 2020). */
export function k3(logProbs: tf.Tensor2D, refLogProbs: tf.Tensor2D): tf.Tensor2D {
  const d = refLogProbs.sub(logProbs);
  return d.exp().sub(d).sub(1);
}

/** What is logged of the tokens that the policy chose: sums, which metrics.jsonl has divided by `tokens`. No gradient. */
export function statistics(
  { logProbs, oldLogProbs, refLogProbs, advantages, mask }: LossInputs,
  entropies: tf.Tensor2D, // (B, T), nats
  { clipRange, clipRangeHigh = clipRange }: LossOptions,
): Record<string, tf.Scalar> {
  const total = (x: tf.Tensor): tf.Scalar => x.cast('float32').mul(mask).sum();
  const ratio = logProbs.sub(oldLogProbs).exp();
  return {
    tokens: mask.sum(),
    entropy: total(entropies),
    ...(refLogProbs ? { kl: total(k3(logProbs, refLogProbs)) } : {}),
    'sampling/logp_difference_max': logProbs.sub(oldLogProbs).abs().mul(mask).max(),
    'clip_ratio/low_mean': total(ratio.less(1 - clipRange).logicalAnd(advantages.less(0))),
    'clip_ratio/high_mean': total(ratio.greater(1 + clipRangeHigh).logicalAnd(advantages.greater(0))),
  };
}

/** What the loss is computed from: everything padded to the longest completion of the micro-batch. */
export function lossInputs(logProbs: tf.Tensor2D, batch: Experience[]): LossInputs {
  const padded = (values: (row: Experience) => number[]) => padRows(batch.map(values), logProbs.shape[1]);
  return {
    logProbs,
    oldLogProbs: padded((row) => row.oldLogProbs),
    weights: padded((row) => row.weights),
    refLogProbs: batch[0].refLogProbs && padded((row) => row.refLogProbs!),
    advantages: tf.tensor2d(batch.map((row) => [row.advantage])),
    mask: padded((row) => row.completion.map(() => 1)),
  };
}

// ─── Training ────────────────────────────────────────────────────────────────────────────────────────────────────────

/** One update of the policy, from a part of a step's experience: one micro-batch after the other. */
export async function updateOnce(state: TrainingState, window: Experience[], learningRate: number, options: Options) {
  const lossOptions = { ...options, completions: window.length };
  const losses = microBatches(window, options.microBatchTokens).map((batch) => (model: Model) => {
    const { logProbs, entropies } = completionLogProbs(model, batch, options.temperature);
    const inputs = lossInputs(logProbs, batch);
    return { loss: grpoLoss(inputs, lossOptions), statistics: statistics(inputs, entropies, lossOptions) };
  });
  const { statistics: sums, ...gradient } = await accumulateGradients(state.model, losses);
  return { sums, ...(await optimizerStep(state, gradient, { ...options, learningRate })) };
}

/**
 * Trains on a step's experience: μ passes, each in a new order, an update every mini-batch size × accumulation steps.
 * @param step - 1 for the first
 * @returns the step's metrics: means over its updates, and over its tokens
 */
export async function update(
  state: TrainingState,
  experience: Experience[],
  step: number,
  options: Options,
): Promise<Record<string, number>> {
  const perUpdate = (options.miniBatchSize || experience.length) * options.gradientAccumulationSteps;
  const perStep = options.numIterations * (experience.length / perUpdate);
  // Updates are counted from 1, so that neither the first nor the last is made with a learning rate of 0.
  const schedule = { warmup: options.warmupSteps, total: options.maxSteps * perStep + 1 };
  const results: Awaited<ReturnType<typeof updateOnce>>[] = [];
  let learningRate = 0;
  for (let iteration = 0; iteration < options.numIterations; iteration++) {
    const order = permutation(experience.length, options.seed, step, iteration);
    for (let begin = 0; begin < order.length; begin += perUpdate) {
      const window = order.slice(begin, begin + perUpdate).map((i) => experience[i]);
      const number = (step - 1) * perStep + results.length + 1; // since the start of the run, skipped ones too
      learningRate = options.learningRate * scheduleFactor(options.lrScheduler, number, schedule);
      results.push(await updateOnce(state, window, learningRate, options));
    }
  }
  const made = results.filter(({ finite }) => finite);
  const { tokens, 'sampling/logp_difference_max': difference, ...sums } = results[0].sums;
  const perToken = (name: string) => mean(made.map(({ sums }) => sums[name] / sums.tokens));
  return {
    loss: mean(made.map(({ loss }) => loss)),
    grad_norm: mean(made.map(({ norm }) => norm)),
    learning_rate: learningRate,
    ...Object.fromEntries(Object.keys(sums).map((name) => [name, perToken(name)])),
    'sampling/logp_difference_max': difference, // before the first update, where there should be none
    skipped_updates: state.counters.skipped,
  };
}

// ─── Evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Asks held-out problems, greedily and, if `samples` > 0, also so many times each as in training.
 * @returns metrics: of the greedy answers, how many are right; of the samples, that and pass@k. And the first greedy answers
 */
export async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { samples, onProgress }: Asking,
  options: Options,
): Promise<Evaluation> {
  const ask = async (numGenerations: number, temperature: number): Promise<Rollout[]> => {
    const sampling = { ...options, numGenerations, temperature, onProgress };
    const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / numGenerations));
    const rollouts: Rollout[] = [];
    for (let begin = 0; begin < problems.length; begin += perBatch) {
      // No step of training is below 0: before and after are asked with the same random numbers.
      const draw: Draw = (...token) => uniform(options.seed, -1 - begin, ...token);
      rollouts.push(...(await rollout(model, tokenizer, problems.slice(begin, begin + perBatch), draw, sampling)));
    }
    return rollouts;
  };
  const verdicts = (rollouts: Rollout[]) => rollouts.map(({ verdict }) => verdict);
  const greedy = await ask(1, 0);
  const sampled = samples > 0 ? await ask(samples, options.temperature) : [];
  const metrics = { ...accuracies(verdicts(greedy)), ...passAtK(inGroups(verdicts(sampled), samples)) };
  return { metrics, answers: greedy.slice(0, 3).map(toSample) };
}

/** What metrics need of a rollout. */
export type Outcome = Pick<Rollout, 'reward' | 'verdict' | 'completion' | 'finishReason'>;

/** What the rollouts of a step say of the policy. A mean over none is NaN: no answer was wrong, say. */
export function rolloutMetrics(rollouts: Outcome[], { numGenerations }: Options): Record<string, number> {
  const length = (some: Outcome[]) => mean(some.map(({ completion }) => completion.length));
  const right = rollouts.filter(({ verdict }) => verdict === 'right');
  const rewards = rollouts.map(({ reward }) => reward);
  const groups = inGroups(rewards, numGenerations);
  return {
    reward: mean(rewards),
    reward_std: mean(groups.map(sampleStd)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    'rewards/accuracy/mean': right.length / rollouts.length,
    'completions/mean_length': length(rollouts),
    'completions/mean_right_length': length(right),
    'completions/mean_wrong_length': length(rollouts.filter(({ verdict }) => verdict !== 'right')),
    'completions/clipped_ratio': mean(rollouts.map(({ finishReason }) => Number(finishReason === 'length'))),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A line of completions.jsonl. */
const toSample = ({ problem: { question, answer }, text, completion, reward, ...rest }: Rollout | Experience) => ({
  ...{ question, answer, completion: text, tokens: completion.length, reward },
  ...('advantage' in rest ? { advantage: rest.advantage } : {}),
  ...{ ids: completion, logProbs: rest.oldLogProbs },
});

/** How the batch of a number is sampled, in this process or in a sampler. */
const sampleFrom =
  (train: Problem[], options: Options): Sample<Rollout> =>
  (model, tokenizer, job, watch, { begin, end } = { begin: 0, end: options.batchSize }) => {
    const draw: Draw = (problem, ...token) => uniform(options.seed, job, begin + problem, ...token);
    const problems = itemsOfStep(train, job, options).slice(begin, end);
    return rollout(model, tokenizer, problems, draw, { ...options, ...watch });
  };

/** How a sampler begins, in a process or on a machine of its own. */
const asSampler = async (options: Options) => sampleFrom((await loadData(options, SUMS)).train, options);

async function main(communicator: Communicator): Promise<void> {
  if (communicator.rank > 0) return serveRanks(communicator, asSampler);
  const options = chosenMode(parseRunOptions(createCommand(), undefined, { repeated: repeatedRun }));
  await checkAsync(options, communicator.size);
  const plan = planOf(options);
  const { train, test } = await loadData(options, SUMS);
  let older = () => new Map<number, Float32Array>(); // of the source, once it is there
  const {
    run,
    state,
    tokenizer,
    reference,
    source: initial,
  } = await startRun(options, {
    ...{ experiment: EXPERIMENT, shown: SHOWN, train, test, buildPrompt, keepsBackend: true },
    reference: options.klCoef > 0 && (plan !== undefined || options.reference === 'trainer'),
    onSave: ({ folder }) => writeOlder(folder, older()),
  });
  console.log(`${train.length} problems to train on, ${test.length} held out`);
  if (communicator.size > 1) console.log(`ranks: ${communicator.size}, of which all but one sample`);
  const ask = (how: Asking) => evaluate(state.model, tokenizer, test, how, options);

  await run.evaluateFirst(ask);
  const timeline = createTimeline(run.folder);
  const setup = { ...options, modelName: initial.folder, hubName: options.modelName }; // the same files, whatever a name stands for by now
  const problemsOf = (job: number) => itemsOfStep(train, job, options);
  const { step: from, checkpoint } = run.folder;
  const policy = { state, tokenizer, from, checkpoint, used: timeline.used, problemsOf };
  const source = await createSource(sampleFrom(train, options), policy, { ...options, plan, setup, communicator });
  ({ older } = source);
  try {
    for await (const step of run.steps()) {
      const batch = await source.next(step.number); // sampled, and rewarded
      const taken = performance.now();
      const experience = await toExperience(batch, { policy: state.model, reference, step: step.number }, options); // advantage
      const updated = await update(state, experience, step.number, options); // update
      await source.publish(step.number);
      const inVain = batch.dropped.flatMap(({ rollouts }) => rollouts);
      const speeds = measureSpeed(state, batch.rollouts, { began: step.began, sampled: taken, inVain });
      const flow = timeline.add(step, batch, taken);
      const ofSampler = experience.map((row, i) => ({ ...row, oldLogProbs: batch.rollouts[i].oldLogProbs })); // log μ
      const samples = ofSampler.slice(0, options.numGenerations).map(toSample);
      const stale = stalenessMetrics(experience, step.number, options);
      step.log({ ...rolloutMetrics(batch.rollouts, options), ...updated, ...stale, ...speeds, ...flow }, samples);
      await step.evaluate(ask);
    }
  } finally {
    await source.close();
  }
  await timeline.picture();
}

if (isSampler()) await runMain(import.meta.url, () => serveSamples(asSampler));
else await runRanks(import.meta.url, main, () => 1);
