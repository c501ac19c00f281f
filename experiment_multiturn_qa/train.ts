/**
 * Multi-turn GRPO with a search tool: questions about a country that does not exist, so that looking things up is the
 * only way to know. Some answers are one search away, for others the first search tells what to look for next.
 *
 * Differs from experiment_multiturn_tool/train.ts in: EXPERIMENT, PRODUCTS, COUNTRY, DEFAULTS, createCommand,
 * toSample, main.
 *
 *   node --import tsx experiment_multiturn_qa/train.ts             it learns to search, to read, and to search again
 *   node --import tsx experiment_multiturn_qa/train.ts --help      all options
 *
 * What is simplified: as in experiment_multiturn_tool, of which this is the loop; only the tool, the questions and what
 * counts as right are others (the setting is that of Search-R1, Jin et al. 2025).
 */
import { Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { type Completion, generate } from '../lib/generation/generate.ts';
import type { Model } from '../lib/model/model.ts';

import { accumulateGradients } from '../lib/training/gradients.ts';
import { completionLogProbs, logProbsOf, microBatches, padRows } from '../lib/training/log_probs.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import { scheduleFactor } from '../lib/training/schedule.ts';
import type { TrainingState } from '../lib/training/state.ts';

import type { Verdict } from '../lib/environments/answers.ts';
import { type Call, checkTools, converse, type Stretch, transcribe } from '../lib/environments/conversation.ts';
import { checkCorpus, loadCorpus, loadQuestions, type Question as Problem } from '../lib/environments/corpus.ts';
import { itemsOfStep, loadSplits } from '../lib/environments/dataset.ts';
import { createRetriever, RETRIEVERS, searchTool } from '../lib/environments/search.ts';
import type { Tool } from '../lib/environments/tool.ts';
import { buildPrompt, callMetrics, gradeConversation, REWARDS, rewardWeights } from './task.ts';

import { createRunCommand, type OptionsOf, parseRunOptions } from '../lib/cli/command.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number } from '../lib/cli/options.ts';
import { permutation, uniform } from '../lib/random.ts';
import { type Asking, accuracies, type Evaluation, passAtK } from '../lib/run/evaluation.ts';
import { measureSpeed } from '../lib/run/speed.ts';
import { startRun } from '../lib/run/start.ts';
import { inGroups, mean, sampleStd } from '../lib/statistics.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_multiturn_qa';
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', calls: 'tools/call_frequency' };
const COUNTRY = { train: 'tasks/encyclopedia/train.jsonl', test: 'tasks/encyclopedia/test.jsonl' };
const DEFAULTS = {
  modelName: 'models/tiny_qa',
  dataset: COUNTRY.train,
  maxSteps: 100,
  evalSteps: 5,
  maxNewTokens: 160,
  learningRate: 1e-4,
};

/** The algorithm's own options, beside those that every run has. */
export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS)
    .description('GRPO over conversations with a search tool. Without options, a tiny model on an invented country.')
    .addHelpText('after', examples('npm run qa', 'npm run qa -- --top-k-passages 1 --max-steps 50'))
    .optionsGroup('Search:')
    .option(
      '--corpus <file>',
      'JSONL with "title" and "text" a line, or HotpotQA\'s .json',
      'tasks/encyclopedia/corpus.jsonl',
    )
    .addOption(new Option('--retriever <name>', 'search by words, or by meaning').choices(RETRIEVERS).default('bm25'))
    .option('--embedding-model <name>', 'folder or hub id, for --retriever embeddings', 'Xenova/all-MiniLM-L6-v2')
    .option('--top-k-passages <n>', 'passages that a search returns', integer({ min: 1, max: 1000 }), 3)
    .optionsGroup('Conversation:')
    .option('--max-turns <n>', 'turns of the policy: all but the last may call a tool', integer({ min: 2 }), 4)
    .option('--max-turn-tokens <n>', 'tokens that the policy may write in a turn', integer({ min: 1 }), 16)
    .option('--max-tool-tokens <n>', "tokens of a tool's answer; a longer one is cut, visibly", integer({ min: 1 }), 64)
    .option('--tool-timeout <x>', 'seconds that a tool may take', number({ above: 0, max: 1e6 }), 5)
    .addOption(rewardWeights())
    .option('--log-completions-interval <n>', 'a group in completions.jsonl every n steps', integer({ min: 1 }), 10)
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1, max: 65_536 }), 16)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2, max: 65_536 }), 8)
    .option('--num-iterations <n>', 'μ, passes over a step (1 update clips nothing)', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }));

export type Options = OptionsOf<typeof createCommand>;

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A conversation about a problem, and what it was worth. */
export type Rollout = {
  problem: Problem;
  prompt: number[]; // token ids
  completion: number[]; // token ids of the whole conversation, the tools' answers included
  mask: number[]; // of each completion token: 1 where the policy chose it, 0 where a tool's answer was fed
  oldLogProbs: number[]; // log π_old of each completion token, as the sampler recorded it; 0 where mask is 0
  transcript: Stretch[]; // who wrote what
  calls: Call[];
  finishReason: Completion['finishReason'];
  rewards: number[]; // in the order of REWARDS
  reward: number; // their weighted sum
  verdict: Verdict; // on the policy's answer, with or without a tool
};

/** The random number in [0, 1) of one token: it depends on what it is drawn for, not on what else is in the batch. */
export type Draw = (problem: number, sample: number, position: number) => number;

/** Holds G conversations about each problem and rewards them: P · G rollouts, those of problem 0 first. */
export async function rollout(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  draw: Draw,
  tools: Tool[],
  options: Options,
): Promise<Rollout[]> {
  const G = options.numGenerations;
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem, tools, options));
  const { calls, react } = converse(tokenizer, tools, { ...options, rows: problems.length * G });
  const completions = await generate(model, prompts, G, {
    ...options,
    react,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => draw(Math.floor(row / G), row % G, position),
  });
  return completions.map(({ tokens, logProbs, mask, finishReason }, row) => {
    const [problem, prompt] = [problems[Math.floor(row / G)], prompts[Math.floor(row / G)]];
    const transcript = transcribe(tokenizer, { tokens, mask });
    const turns = transcript.filter(({ by }) => by === 'policy').map(({ text }) => text);
    const conversation = { turns, calls: calls[row] };
    const graded = gradeConversation(conversation, problem, options.rewardWeights);
    const sampled = { prompt, completion: tokens, mask, oldLogProbs: logProbs, finishReason };
    return { problem, ...sampled, transcript, calls: calls[row], ...graded };
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

/**
 * What the loss is computed from: everything padded to the longest completion of the micro-batch, and 0 wherever a tool
 * wrote. What a tool wrote may be very unlikely to the policy: at 0, ratio and KL stay finite there until the mask takes
 * them out.
 */
export function lossInputs(logProbs: tf.Tensor2D, batch: Experience[]): LossInputs {
  const padded = (values: (row: Experience) => number[]) => padRows(batch.map(values), logProbs.shape[1]);
  const mask = padded((row) => row.mask);
  return {
    logProbs: logProbs.mul(mask),
    oldLogProbs: padded((row) => row.oldLogProbs),
    refLogProbs: batch[0].refLogProbs && padded((row) => row.refLogProbs!).mul<tf.Tensor2D>(mask),
    advantages: tf.tensor2d(batch.map((row) => [row.advantage])),
    mask,
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
 * @returns metrics: of the greedy answers, how many are right, calls a conversation, and the share of calls that failed;
 *   of the samples, how many are right and pass@k. And the first greedy answers
 */
export async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { samples, onProgress }: Asking,
  tools: Tool[],
  options: Options,
): Promise<Evaluation> {
  const ask = async (numGenerations: number, temperature: number): Promise<Rollout[]> => {
    const sampling = { ...options, numGenerations, temperature, onProgress };
    const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / numGenerations));
    const rollouts: Rollout[] = [];
    for (let begin = 0; begin < problems.length; begin += perBatch) {
      // No step of training is below 0: before and after are asked with the same random numbers.
      const draw: Draw = (...token) => uniform(options.seed, -1 - begin, ...token);
      const asked = problems.slice(begin, begin + perBatch);
      rollouts.push(...(await rollout(model, tokenizer, asked, draw, tools, sampling)));
    }
    return rollouts;
  };
  const verdicts = (rollouts: Rollout[]) => rollouts.map(({ verdict }) => verdict);
  const greedy = await ask(1, 0);
  const sampled = samples > 0 ? await ask(samples, options.temperature) : [];
  const calls = Object.entries(callMetrics(greedy)).map(([name, value]) => [`eval/${name}`, value]);
  const accuracy = { ...accuracies(verdicts(greedy)), ...passAtK(inGroups(verdicts(sampled), samples)) };
  return { metrics: { ...accuracy, ...Object.fromEntries(calls) }, answers: greedy.slice(0, 3).map(toSample) };
}

/** What the rollouts of a step say of the policy. Lengths are of what the policy wrote, without the tools' answers. */
export function rolloutMetrics(rollouts: Rollout[], { numGenerations }: Options): Record<string, number> {
  const length = (some: Rollout[]) => mean(some.map(({ mask }) => mask.reduce((sum, own) => sum + own)));
  const right = rollouts.filter(({ verdict }) => verdict === 'right');
  const rewards = rollouts.map(({ reward }) => reward);
  const groups = inGroups(rewards, numGenerations);
  const part = (i: number) => mean(rollouts.map(({ rewards }) => rewards[i]));
  return {
    reward: mean(rewards),
    reward_std: mean(groups.map(sampleStd)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    ...Object.fromEntries(Object.keys(REWARDS).map((name, i) => [`rewards/${name}/mean`, part(i)])),
    'rewards/accuracy/mean': right.length / rollouts.length,
    ...callMetrics(rollouts),
    'completions/mean_length': length(rollouts),
    'completions/mean_right_length': length(right),
    'completions/mean_wrong_length': length(rollouts.filter(({ verdict }) => verdict !== 'right')),
    'completions/clipped_ratio': mean(rollouts.map(({ finishReason }) => Number(finishReason === 'length'))),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A line of completions.jsonl. */
export const toSample = ({ problem: { question, answers }, transcript, calls, ...rest }: Rollout | Experience) => {
  const [answer, completion] = [answers.join(' / '), transcript.map(({ text }) => text).join('')];
  const advantage = 'advantage' in rest ? { advantage: rest.advantage } : {};
  const graded = { reward: rest.reward, rewards: rest.rewards, ...advantage };
  const logProbs = rest.oldLogProbs.map((logProb, t) => (rest.mask[t] ? logProb : null)); // null: a tool wrote it
  const tokens = { tokens: rest.completion.length, ids: rest.completion, logProbs };
  return { question, answer, completion, ...tokens, ...graded, transcript, calls };
};

async function main(): Promise<void> {
  const options = parseRunOptions(createCommand());
  const { train, test } = loadSplits(loadQuestions, options, COUNTRY);
  const passages = loadCorpus(options.corpus);
  for (const questions of [train, test]) checkCorpus(questions, { ...options, passages });
  const tools: Tool[] = [];
  const { run, state, tokenizer, reference } = await startRun(options, {
    ...{ experiment: EXPERIMENT, shown: SHOWN, train, test, reference: options.klCoef > 0 },
    prepare: async (tokenizer) => {
      tools.push(searchTool(await createRetriever(passages, options), options));
      checkTools(tokenizer, tools);
    },
    buildPrompt: (tokenizer, problem) => buildPrompt(tokenizer, problem, tools, options),
  });
  console.log(`${train.length} questions to train on, ${test.length} held out; ${passages.length} passages to search`);
  const ask = (how: Asking) => evaluate(state.model, tokenizer, test, how, tools, options);

  await run.evaluateFirst(ask);
  for await (const step of run.steps()) {
    const problems = itemsOfStep(train, step.number, options);
    const draw: Draw = (...token) => uniform(options.seed, step.number, ...token);
    const rollouts = await rollout(state.model, tokenizer, problems, draw, tools, options); // sample, and reward
    const experience = await toExperience(rollouts, reference, options); // advantage
    const sampled = performance.now();
    const updated = await update(state, experience, step.number, options); // update
    const speeds = measureSpeed(state, rollouts, { began: step.began, sampled });
    const isLogged = step.number % options.logCompletionsInterval === 0 || step.number === 1;
    const samples = isLogged ? experience.slice(0, options.numGenerations).map(toSample) : [];
    step.log({ ...rolloutMetrics(rollouts, options), ...updated, ...speeds }, samples);
    await step.evaluate(ask);
  }
}

await runMain(import.meta.url, main);
