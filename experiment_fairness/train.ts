/**
 * Fairness by GRPO: a group is one patient, told several ways. Its members are counterfactual twins, the same case with
 * another level of one attribute, and the reward says how far a recommendation is from what the twins get.
 *
 * Differs from experiment_base/train.ts in: EXPERIMENT, SHOWN, SUMS, DEFAULTS, createCommand, readOptions, SYSTEM_PROMPT,
 * buildPrompt, verdict, reward, twinsFairness, batchFairness, rewardsOf, Rollout, rollout, evaluate, Outcome,
 * rolloutMetrics, main.
 *
 *   node --import tsx experiment_fairness/train.ts             the bundled tiny clinician, biased on purpose
 *   node --import tsx experiment_fairness/train.ts --help      all options
 *
 * What is simplified: as in experiment_base; and fairness is one number of a recommendation, its invasiveness, compared
 * between groups. The data are made up; nothing here is medical advice, or says anything of a real model or people.
 */

import { resolve } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { type Completion, generate } from '../lib/generation/generate.ts';
import type { Model } from '../lib/model/model.ts';

import { accumulateGradients } from '../lib/training/gradients.ts';
import { completionLogProbs, logProbsOf, microBatches, padRows } from '../lib/training/log_probs.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import { scheduleFactor } from '../lib/training/schedule.ts';
import type { TrainingState } from '../lib/training/state.ts';

import { itemsOfStep } from '../lib/environments/dataset.ts';
import { disparityBy, fairnessMetrics, groupMeans } from './metrics.ts';
import { defaultsOf, fairnessOptions } from './options.ts';
import { keepRated, writeReport } from './report.ts';
import { buildPrompt, CASES, loadVignettes, type Rated, REWARDS, rate, SCALE, told, withTwins } from './task.ts';

import { createRunCommand, type OptionsOf, parseRunOptions } from '../lib/cli/command.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, isTyped, number } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { permutation, uniform } from '../lib/random.ts';
import type { Asking, Evaluation } from '../lib/run/evaluation.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { startRun } from '../lib/run/start.ts';
import { inGroups, mean, sampleStd } from '../lib/statistics.ts';
import { type Attribute, FACTORS } from '../tasks/vignettes/profiles.ts';
import type { Vignette } from '../tasks/vignettes/vignette.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_fairness';
const SHOWN = { reward: 'reward', 'held-out disparity ratio': 'eval/disparity_ratio', appropriate: 'eval/accuracy' };
const DEFAULTS = {
  ...{ modelName: 'models/tiny_clinician', loraRank: 0, dataset: CASES.train, evalSize: 24, evalSamples: 1 },
  ...{ maxSteps: 100, evalSteps: 20, batchSize: 16, numSamples: 2304, maxNewTokens: 40, learningRate: 2.5e-4 },
};

/** The algorithm's own options, beside those that every run has. */
export const createCommand = (defaults = DEFAULTS) =>
  createRunCommand(EXPERIMENT, defaults)
    .description('GRPO between counterfactual twins. Without options it trains a tiny clinician with a bias.')
    .addHelpText('after', examples('npm run fairness -- --attribute age_band', 'npm run fairness -- --group samples'))
    .optionsGroup('Fairness:')
    .addOption(fairnessOptions.attribute())
    .addOption(fairnessOptions.group())
    .addOption(fairnessOptions.rewardWeights())
    .addOption(fairnessOptions.preset())
    .option('--num-samples <n>', 'held-out vignettes to ask', integer({ min: 2 }), defaults.numSamples)
    .option('--iterations <n>', 'another name of --max-steps, and stronger', integer({ min: 1 }))
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, patients a step', integer({ min: 1, max: 65_536 }), defaults.batchSize)
    .option('--num-generations <n>', 'G, completions of each patient', integer({ min: 2, max: 65_536 }), 12)
    .option('--num-iterations <n>', 'μ, passes over a step (1 update clips nothing)', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }));

export type Options = OptionsOf<typeof createCommand>;

/** Parses the command line, twice: its defaults depend on the preset, and on the model. */
export function readOptions(argv?: string[]): Options {
  const { preset, modelName, resume } = parseRunOptions(createCommand(), argv);
  if (resume !== undefined && isTyped('--preset', argv)) {
    throw new UserError(`--preset ${preset} is for a new run: leave it out, --resume has the options of ${resume}`);
  }
  const defaults = defaultsOf({ preset, isBundled: resolve(modelName) === resolve(DEFAULTS.modelName) });
  const { iterations, ...options } = parseRunOptions(createCommand({ ...DEFAULTS, ...defaults }), argv);
  return { ...options, maxSteps: iterations ?? options.maxSteps };
}

// ─── Fairness: rewards between the members of a group ───────────────────────────────────────────────────────────────

/**
 * How close each recommendation is to the mean of its twins: f_i = max(0, 1 − |x_i − mean(x)| / 5), x the invasiveness.
 * What cannot be read gets 0.
 * @param group - what one patient's twins are recommended, each as often
 */
export function twinsFairness(group: Pick<Rated, 'points'>[]): number[] {
  const center = mean(group.flatMap(({ points }) => points ?? []));
  return group.map(({ points }) => (points === undefined ? 0 : Math.max(0, 1 - Math.abs(points - center) / SCALE)));
}

/**
 * Without twins, what a recommendation adds to the disparity of the batch: f_i = −d_l · (x_i − m_l) / 5, where d_l is how far
 * m_l, the mean of its level, is from that of all levels. But for a factor, d_l is the gradient of Σ d_l² / 2 by x_i.
 */
export function batchFairness(rated: Rated[], attribute: Attribute): number[] {
  const levels: readonly string[] = FACTORS[attribute];
  const means = groupMeans(rated, attribute);
  const center = mean(means.filter(Number.isFinite));
  return rated.map(({ profile, points }) => {
    const own = means[levels.indexOf(profile[attribute])];
    return points === undefined ? 0 : (-(own - center) * (points - own)) / SCALE;
  });
}

/** The rewards of each completion, in the order of `REWARDS`: of the step's P · G, those of group 0 first. */
export function rewardsOf(rated: Rated[], { group, attribute, numGenerations }: Options): number[][] {
  const ofTwins = () => inGroups(rated, numGenerations).flatMap(twinsFairness);
  const fairness = group === 'counterfactual' ? ofTwins() : batchFairness(rated, attribute);
  const rewards = rated.map((one, i) => [Number(one.points !== undefined), one.appropriateness, fairness[i]]);
  if (group !== 'one-reward') return rewards;
  // The mistake that this is the control of: whoever did what, all get what the batch is worth.
  const ofBatch = (k: number) => mean(rewards.map((parts) => parts[k]));
  return rewards.map(() => [ofBatch(0), ofBatch(1), -(disparityBy(rated, attribute).gap || 0)]);
}

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A completion of a vignette, and what it was worth. */
export type Rollout = Rated & {
  problem: Vignette;
  prompt: number[]; // token ids
  completion: number[]; // token ids, with the one that ended it
  oldLogProbs: number[]; // log π_old of each completion token, as the sampler recorded it
  text: string;
  finishReason: Completion['finishReason'];
  rewards: number[]; // in the order of REWARDS
  reward: number; // their weighted sum
};

/** The random number in [0, 1) of one token: it depends on what it is drawn for, not on what else is in the batch. */
export type Draw = (problem: number, sample: number, position: number) => number;

/** Samples G completions about each patient and rewards them: P · G rollouts, those of patient 0 first, twin by twin. */
export async function rollout(
  model: Model,
  tokenizer: Tokenizer,
  patients: Vignette[],
  draw: Draw,
  options: Options,
): Promise<Rollout[]> {
  const G = options.numGenerations;
  const vignettes = told(patients, options).flat();
  const perVignette = (G * patients.length) / vignettes.length;
  const prompts = vignettes.map((vignette) => buildPrompt(tokenizer, vignette, options));
  const completions = await generate(model, prompts, perVignette, {
    ...options,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => draw(Math.floor(row / G), row % G, position),
  });
  const answers = completions.map(({ tokens, logProbs, finishReason }, row) => {
    const [problem, prompt] = [vignettes, prompts].map((of) => of[Math.floor(row / perVignette)]) as [
      Vignette,
      number[],
    ];
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    return { problem, prompt, completion: tokens, oldLogProbs: logProbs, text, finishReason, ...rate(text, problem) };
  });
  const rewards = rewardsOf(answers, options);
  const weighted = (parts: number[]) => parts.reduce((sum, part, k) => sum + options.rewardWeights[k] * part, 0);
  return answers.map((answer, i) => ({ ...answer, rewards: rewards[i], reward: weighted(rewards[i]) }));
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

/** A rollout, and what it teaches. */
export type Experience = Rollout & {
  advantage: number;
  refLogProbs?: number[] | undefined; // log π_ref of each completion token; only if β > 0
};

/** What rollouts teach: their advantages, and how likely the reference policy finds each token. */
export async function toExperience(
  rollouts: Rollout[],
  reference: Model | undefined,
  options: Options,
): Promise<Experience[]> {
  const rewards = rollouts.map(({ reward }) => reward);
  const advantages = groupAdvantages(inGroups(rewards, options.numGenerations)).flat();
  const refLogProbs = reference ? await logProbsOf(reference, rollouts, options) : [];
  return rollouts.map((rollout, i) => ({ ...rollout, advantage: advantages[i], refLogProbs: refLogProbs[i] }));
}

/** B completions as the loss sees them, padded to T tokens. */
export type LossInputs = {
  logProbs: tf.Tensor2D; // (B, T), under the policy in training
  oldLogProbs: tf.Tensor2D; // (B, T), under the policy that sampled
  refLogProbs?: tf.Tensor2D | undefined; // (B, T), under the reference; only if β > 0
  advantages: tf.Tensor2D; // (B, 1), one a completion
  mask: tf.Tensor2D; // (B, T), 1 on tokens that the policy chose, 0 elsewhere
};

/** `completions`: of the whole update, of which the B of a micro-batch may be a part. */
export type LossOptions = Pick<Options, 'clipRange' | 'clipRangeHigh' | 'klCoef'> & { completions: number };

/**
 * GRPO's loss (DeepSeekMath, eqs. 3 and 4): for each token, the clipped surrogate plus β times the KL to the reference;
 * the mean over each completion's tokens; the mean over all completions of the update.
 */
export function grpoLoss(
  { logProbs, oldLogProbs, refLogProbs, advantages, mask }: LossInputs,
  { clipRange, clipRangeHigh = clipRange, klCoef, completions }: LossOptions,
): tf.Scalar {
  const ratio = logProbs.sub(oldLogProbs).exp(); // (B, T), ρ = π / π_old
  const clipped = ratio.clipByValue(1 - clipRange, 1 + clipRangeHigh);
  const surrogate = ratio.mul(advantages).minimum(clipped.mul(advantages)).neg();
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
 * Asks held-out patients and their twins, greedily and, if `samples` > 0, also so many times each as in training.
 * @returns metrics: disparities, and how much is appropriate; the first greedy answers; and all greedy ones, `rated`
 */
export async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  patients: Vignette[],
  { samples, onProgress }: Asking,
  options: Options,
): Promise<Evaluation & { rated: Rated[] }> {
  const ask = async (perTwin: number, temperature: number): Promise<Rollout[]> => {
    const numGenerations = perTwin * FACTORS[options.attribute].length;
    const sampling = { ...options, numGenerations, temperature, onProgress, group: 'counterfactual' as const };
    const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / numGenerations));
    const rollouts: Rollout[] = [];
    for (let begin = 0; begin < patients.length; begin += perBatch) {
      // No step of training is below 0: before and after are asked with the same random numbers.
      const draw: Draw = (...token) => uniform(options.seed, -1 - begin, ...token);
      rollouts.push(...(await rollout(model, tokenizer, patients.slice(begin, begin + perBatch), draw, sampling)));
    }
    return rollouts;
  };
  const greedy = await ask(1, 0);
  const sampled = samples > 0 ? await ask(samples, options.temperature) : [];
  const metrics = fairnessMetrics({ greedy, sampled, samples }, options.attribute);
  return { metrics, answers: greedy.slice(0, 4).map(toSample), rated: greedy };
}

/** What the rollouts of a step say of the policy. A mean over none is NaN: no answer was wrong, say. */
export function rolloutMetrics(rollouts: Rollout[], { numGenerations, attribute }: Options): Record<string, number> {
  const meanOf = (of: (rollout: Rollout) => number | boolean) => mean(rollouts.map((rollout) => Number(of(rollout))));
  const groups = inGroups(rollouts, numGenerations).map((group) => group.map(({ reward }) => reward));
  return {
    reward: meanOf(({ reward }) => reward),
    reward_std: mean(groups.map(sampleStd)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    ...Object.fromEntries(REWARDS.map((name, k) => [`rewards/${name}/mean`, meanOf(({ rewards }) => rewards[k])])),
    'rewards/accuracy/mean': meanOf(({ verdict }) => verdict === 'right'),
    'disparity/ratio': disparityBy(rollouts, attribute).ratio,
    'completions/parsed_ratio': meanOf(({ points }) => points !== undefined),
    'completions/mean_length': meanOf(({ completion }) => completion.length),
    'completions/clipped_ratio': meanOf(({ finishReason }) => finishReason === 'length'),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A line of completions.jsonl. */
const toSample = ({ problem: { question, answer }, text, completion, reward, ...rest }: Rollout | Experience) => ({
  ...{ question, answer, completion: text, tokens: completion.length, reward },
  ...('advantage' in rest ? { advantage: rest.advantage } : {}),
  ...{ ids: completion, logProbs: rest.oldLogProbs },
});

async function main(): Promise<void> {
  const options = readOptions();
  const { train, test } = loadVignettes(options);
  const { run, state, tokenizer, reference } = await startRun(options, {
    ...{
      experiment: EXPERIMENT,
      shown: SHOWN,
      buildPrompt,
      train: withTwins(train, options),
      test: withTwins(test, options),
    },
    reference: options.klCoef > 0,
    heldOutOption: '--num-samples',
    kept: ['attribute', 'group', 'rewardWeights'],
  });
  const asked = withTwins(test, options).length;
  console.log(`${train.length} patients to train on; ${test.length} held out, with their twins ${asked} vignettes`);
  const asking = (step: number) => async (how: Asking) => {
    const { rated, ...evaluation } = await evaluate(state.model, tokenizer, test, how, options);
    keepRated(run.folder.folder, rated, { step, ...options });
    return evaluation;
  };

  await run.evaluateFirst(asking(0));
  for await (const step of run.steps()) {
    const patients = itemsOfStep(train, step.number, options);
    const draw: Draw = (...token) => uniform(options.seed, step.number, ...token);
    const rollouts = await rollout(state.model, tokenizer, patients, draw, options); // sample, and reward
    const experience = await toExperience(rollouts, reference, options); // advantage
    const sampled = performance.now();
    const updated = await update(state, experience, step.number, options); // update
    const speeds = measureSpeed(state, rollouts, { began: step.began, sampled });
    const samples = experience.slice(0, options.numGenerations).map(toSample);
    step.log({ ...rolloutMetrics(rollouts, options), ...updated, ...speeds }, samples);
    await step.evaluate(asking(step.number));
  }
  await writeReport(run.folder.folder, run.folder.history(), options);
}

await runMain(import.meta.url, main);
