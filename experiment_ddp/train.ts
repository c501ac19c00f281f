/**
 * Data-parallel GRPO: several processes, the ranks, each with the whole policy and a part of the prompts.
 *
 * Each rank samples, rewards and differentiates its own completions. Their gradients, each already divided by the size of
 * the whole update, are added up, and every rank makes the same update: the result is that of one process with the whole
 * batch, however many ranks there are. What is simplified: as in experiment_base.
 *
 * Differs from experiment_base/train.ts in: EXPERIMENT, createCommand, gatherOutcomes, updateOnce, update, main.
 *
 *   node --import tsx experiment_ddp/train.ts --nproc 2                       two processes of this machine
 *   mpirun -np 8 --hostfile hosts node --import tsx experiment_ddp/train.ts   several machines
 */
import * as tf from '@tensorflow/tfjs';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { type Completion, generate } from '../lib/generation/generate.ts';
import { type Model, trainable } from '../lib/model/model.ts';

import { amongAll, type Communicator, fromRankZero, reduceByName, shard } from '../lib/distributed/communicator.ts';
import { allReduceTensors } from '../lib/distributed/flatten.ts';
import { checkInSync } from '../lib/distributed/state.ts';
import { accumulateGradients } from '../lib/training/gradients.ts';
import { completionLogProbs, logProbsOf, microBatches, padRows } from '../lib/training/log_probs.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import { scheduleFactor } from '../lib/training/schedule.ts';
import type { TrainingState } from '../lib/training/state.ts';

import { sameAnswer, type Verdict } from '../lib/environments/answers.ts';
import { itemsOfStep, loadProblems, loadSplits, type Problem } from '../lib/environments/dataset.ts';
import { finiteReward } from '../lib/environments/reward.ts';

import { createRunCommand, type OptionsOf, parseRunOptions } from '../lib/cli/command.ts';
import { examples, integer, number } from '../lib/cli/options.ts';
import { checkRanks } from '../lib/cli/rank_limits.ts';
import { runRanks } from '../lib/cli/ranks.ts';
import { permutation, uniform } from '../lib/random.ts';
import { type Asking, accuracies, type Evaluation, passAtK } from '../lib/run/evaluation.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { startRun } from '../lib/run/start.ts';
import { inGroups, mean, sampleStd } from '../lib/statistics.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_ddp';
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', 'tokens/s': 'tokens_per_second' };
const SUMS = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
const DEFAULTS = { dataset: SUMS.train, maxSteps: 200, evalSteps: 25, maxNewTokens: 32, learningRate: 2.5e-4 };

/** The algorithm's own options, beside those that every run has. */
export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS)
    .description('Data-parallel GRPO. Without options it trains the bundled tiny model on sums.')
    .addHelpText('after', examples(`node --import tsx ${EXPERIMENT}/train.ts --nproc 2 --max-steps 50`))
    .optionsGroup('Ranks:')
    .option('--nproc <n>', 'ranks on this machine (below mpirun or srun: as many as it starts)', integer({ min: 1 }), 2)
    .option('--check-sync-steps <n>', "compare all ranks' weights, and at the end (0: never)", integer({ min: 0 }), 25)
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1, max: 65_536 }), 32)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2, max: 65_536 }), 8)
    .option('--num-iterations <n>', 'μ, passes over a step (1 update clips nothing)', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }))
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

/** What all rollouts of a step came to, on every rank. */
async function gatherOutcomes(communicator: Communicator, rollouts: (Rollout | undefined)[]): Promise<Outcome[]> {
  const numbers = rollouts.map((own) => {
    const flags = [own?.verdict === 'right', own?.finishReason === 'length'].map(Number);
    return [own?.reward ?? 0, own?.completion.length ?? 0, ...flags];
  });
  const all = Float32Array.from(numbers.flat());
  await communicator.allReduceSum(all);
  return inGroups([...all], 4).map(([reward, length, right, clipped]): Outcome => {
    const ended = { verdict: right ? 'right' : 'wrong', finishReason: clipped ? 'length' : 'stop' } as const;
    return { reward, completion: new Array(length), ...ended };
  });
}

/** One update of the policy, the same on every rank. The loss of this rank's completions is divided by those of all. */
export async function updateOnce(
  state: TrainingState,
  window: (Experience | undefined)[],
  learningRate: number,
  communicator: Communicator,
  options: Options,
) {
  const mine = window.filter((experience) => experience !== undefined);
  const lossOptions = { ...options, completions: window.length };
  const losses = microBatches(mine, options.microBatchTokens).map((batch) => (model: Model) => {
    const { logProbs, entropies } = completionLogProbs(model, batch, options.temperature);
    const inputs = lossInputs(logProbs, batch);
    return { loss: grpoLoss(inputs, lossOptions), statistics: statistics(inputs, entropies, lossOptions) };
  });
  const own = await accumulateGradients(state.model, losses);
  const ownLoss = (await own.loss.data())[0];
  own.loss.dispose();
  const { loss, ...sums } = await reduceByName(communicator, { loss: ownLoss, ...own.statistics });
  const gradient = { loss: tf.scalar(loss), gradients: await allReduceTensors(communicator, own.gradients) };
  return { sums, ...(await optimizerStep(state, gradient, { ...options, learningRate })) };
}

/**
 * Trains on a step's experience: μ passes, each in a new order, an update every mini-batch size × accumulation steps.
 * @param step - 1 for the first
 * @returns the step's metrics: means over its updates, and over its tokens
 */
export async function update(
  state: TrainingState,
  experience: (Experience | undefined)[],
  step: number,
  communicator: Communicator,
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
      results.push(await updateOnce(state, window, learningRate, communicator, options));
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

async function main(communicator: Communicator): Promise<void> {
  // Rank 0 reads the command line, the data and the checkpoint; the others hear of them from it.
  const options = await fromRankZero(communicator, () => parseRunOptions(createCommand()));
  const { train, test } = await fromRankZero(communicator, () => loadSplits(loadProblems, options, SUMS));
  const { run, state, tokenizer, reference } = await startRun(options, {
    ...{ experiment: EXPERIMENT, shown: SHOWN, train, test, buildPrompt, communicator },
    reference: options.klCoef > 0,
  });
  if (!run.silent) console.log(`${train.length} problems to train on, ${test.length} held out`);
  const ask = (how: Asking) => evaluate(state.model, tokenizer, test, how, options);
  const { begin, end } = shard(communicator, options.batchSize); // this rank's problems
  const place = { first: begin * options.numGenerations, count: options.batchSize * options.numGenerations };

  await run.evaluateFirst(ask);
  for await (const step of run.steps()) {
    const problems = itemsOfStep(train, step.number, options).slice(begin, end);
    const draw: Draw = (problem, ...token) => uniform(options.seed, step.number, begin + problem, ...token);
    const rollouts = await rollout(state.model, tokenizer, problems, draw, options);
    const experience = await toExperience(rollouts, reference, options);
    const outcomes = await gatherOutcomes(communicator, amongAll(rollouts, place));
    const sampled = performance.now();
    const updated = await update(state, amongAll(experience, place), step.number, communicator, options);
    const isDue = step.number % options.checkSyncSteps === 0 || step.isLast;
    if (options.checkSyncSteps > 0 && isDue) await checkInSync(communicator, trainable(state.model), step.number);
    const speeds = measureSpeed(state, outcomes, { began: step.began, sampled });
    const samples = experience.slice(0, options.numGenerations).map(toSample);
    step.log({ ...rolloutMetrics(outcomes, options), ...updated, ...speeds }, samples);
    await step.evaluate(ask);
  }
}

await runRanks(import.meta.url, main, () => checkRanks(parseRunOptions(createCommand())));
