/**
 * Data-parallel GRPO: several processes, the ranks, each with the whole policy and a part of the prompts.
 *
 * Each rank samples, scores and differentiates its own completions. The gradients are added up over the ranks, each
 * already divided by the size of the whole update, and every rank makes the same update. So the result is that of one
 * process with the whole batch, however many ranks there are.
 *
 *   npx tsx experiment_ddp/train.ts --nproc 2                       two processes of this machine
 *   mpirun -np 8 --hostfile hosts npx tsx experiment_ddp/train.ts   several machines
 *   npx tsx experiment_ddp/train.ts --help                          all options
 *
 * What is simplified: the reward is a rule, not a trained model; sampling and training take turns in one process; the
 * reference policy, where there is one (--kl-coef above 0), stays the initial policy for the whole run.
 */
import { Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
// biome-ignore format: a list to skip, not to read
import {
  accumulateGradients, broadcastState, type Communicator, type Completion, checkInSync, checkPrompts, createRunCommand,
  createTrainingState, disposeModel, findRun, finishRun, fromRankZero, generate, initBackend, integer, itemsOfStep,
  loadPretrained, loadProblems, loadSplits, loadTokenizer, locatePretrained, type Model, microBatches, number, openRun,
  optimizerStep, type Params, type Problem, parseRunOptions, permutation, runRanks, runSteps, SCHEDULES, type Sequence,
  scheduleFactor, scoreCompletions, shareRun, type Tokenizer, type TrainingState, trainable, UserError, uniform,
} from '../lib/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_ddp';
const BUCKET = 2 ** 22; // numbers that the ranks send at once: 16 MB
// Copied from experiment_base/train.ts: PASS_AT
const PASS_AT = 8; // samples of each held-out problem, before and after
// Copied from experiment_base/train.ts: SHOWN
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', 'tokens/s': 'tokens_per_second' };
// Copied from experiment_base/train.ts: SUMS
const SUMS = { train: 'data/sums_train.jsonl', test: 'data/sums_test.jsonl' };

export const createCommand = () =>
  createRunCommand(EXPERIMENT)
    .description('Data-parallel GRPO. Without options it trains the bundled tiny model on sums.')
    .option(
      '--nproc <n>',
      'ranks on this machine (below mpirun or srun: as many as these start)',
      integer({ min: 1 }),
      2,
    )
    .option(
      '--check-sync-steps <n>',
      'compare the weights of all ranks, and at the end (0: never)',
      integer({ min: 0 }),
      25,
    )
    .option('--dataset <file>', 'JSONL with "question" and "answer" a line', SUMS.train)
    .option('--eval-dataset <file>', 'held-out JSONL (default: the bundled one, or --eval-size lines of --dataset)')
    .option('--max-steps <n>', 'steps: each samples once and updates at least once', integer({ min: 1 }), 200)
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1 }), 32)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2 }), 8)
    .option('--num-iterations <n>', 'μ, passes over the completions of a step', integer({ min: 1 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--micro-batch-tokens <n>', 'completion tokens in memory at once', integer({ min: 1 }), 8192)
    .option('--learning-rate <x>', "AdamW's, after the warm-up", number({ min: 0 }), 2.5e-4)
    .addOption(new Option('--lr-scheduler <name>', 'after the warm-up').choices(SCHEDULES).default('linear' as const))
    .option('--warmup-steps <n>', 'updates over which the learning rate rises', integer({ min: 0 }), 5)
    .option('--weight-decay <x>', 'decoupled; norms do not decay', number({ min: 0 }), 0)
    .option('--max-grad-norm <x>', 'global norm to clip the gradient to (0: no clipping)', number({ min: 0 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }))
    .option('--temperature <x>', 'of sampling, and of the log-probs trained on', number({ above: 0 }), 1)
    .option('--top-k <n>', 'sample from the k most likely tokens (0: all)', integer({ min: 0 }), 0)
    .option('--top-p <x>', 'sample from the most likely tokens that make up p', number({ above: 0, max: 1 }), 1)
    .option('--max-new-tokens <n>', 'tokens a completion may have', integer({ min: 1 }), 32)
    .option('--eval-steps <n>', 'evaluate every so many steps (0: before and after only)', integer({ min: 0 }), 25)
    .option('--eval-size <n>', 'held-out problems', integer({ min: 1 }), 200);

// Copied from experiment_base/train.ts: Options
export type Options = ReturnType<ReturnType<typeof createCommand>['opts']>;

// Copied from experiment_base/train.ts: checkOptions
/** What no single option can check. */
export function checkOptions({ batchSize: P, numGenerations: G, ...options }: Options): void {
  const perUpdate = (options.miniBatchSize || P * G) * options.gradientAccumulationSteps;
  if ((P * G) % perUpdate === 0) return;
  throw new UserError(
    `the ${P * G} completions of a step (--batch-size ${P} × --num-generations ${G}) must divide into updates of ${perUpdate} (--mini-batch-size × --gradient-accumulation-steps): choose sizes that do`,
  );
}

/** The options of this call, checked. */
function readOptions(): Options {
  const options = parseRunOptions(createCommand());
  checkOptions(options);
  return options;
}

// ─── Task: prompt and reward ─────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: SYSTEM_PROMPT
const SYSTEM_PROMPT =
  'Solve the problem. Work step by step inside <think></think>, then give the final answer alone inside <answer></answer>.';

// Copied from experiment_base/train.ts: buildPrompt
/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(tokenizer: Tokenizer, { question }: Pick<Problem, 'question'>): number[] {
  const system = { role: 'system', content: SYSTEM_PROMPT };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

// Copied from experiment_base/train.ts: reward
/**
 * The rule that says how good a completion is: 1 for the right answer in its tags, 0.1 for a wrong one in its tags
 * (a hint towards the format), 0 without them. The last tagged answer counts.
 */
export function reward(text: string, answer: string): number {
  const given = [...text.matchAll(/<answer>(.*?)<\/answer>/gs)].at(-1)?.[1];
  if (!given?.trim()) return 0;
  return sameAnswer(given, answer) ? 1 : 0.1;
}

// Copied from experiment_base/train.ts: sameAnswer
/** Numbers are compared as numbers (4 = 4.0, 1,000 = 1000), anything else as text. */
export function sameAnswer(given: string, expected: string): boolean {
  const plain = (text: string) => (/^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(',', '') : text);
  const [a, b] = [plain(given.trim()), plain(expected.trim())];
  if (a === b) return true;
  // Beyond this, different numbers would be equal as floating-point numbers.
  if (a === '' || b === '' || !(Math.abs(Number(b)) <= Number.MAX_SAFE_INTEGER)) return false;
  return Math.abs(Number(a) - Number(b)) < 1e-9;
}

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: Rollout
/** One completion, with all that training needs to know of it. */
export type Rollout = Sequence & {
  problem: Problem;
  text: string;
  finishReason: Completion['finishReason'];
  oldLogProbs: number[]; // of each completion token when it was sampled (π_old), as the sampler recorded them
  refLogProbs?: number[]; // the same under the reference policy; only if β > 0
  reward: number;
  advantage: number;
};

/**
 * Samples G completions of each problem and scores them: P · G rollouts, those of problem 0 first.
 * A draw depends on seed, step, problem, sample and position alone: not on what else is in the batch, nor on the rank.
 * @param options.first - number of the first of these problems among those of the step
 */
export async function rollout(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { step, first = 0, ...options }: Options & { step: number; first?: number },
): Promise<Rollout[]> {
  const G = options.numGenerations;
  if (problems.length === 0) return []; // more ranks than prompts
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem));
  const completions = await generate(model, prompts, G, {
    ...options,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => uniform(options.seed, step, first + Math.floor(row / G), row % G, position),
  });
  const rollouts = completions.map(({ tokens, logProbs, finishReason }, row) => {
    const [problem, prompt] = [problems[Math.floor(row / G)], prompts[Math.floor(row / G)]];
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    const score = reward(text, problem.answer);
    return { problem, prompt, completion: tokens, text, finishReason, oldLogProbs: logProbs, reward: score };
  });
  const rewards = problems.map((_, p) => rollouts.slice(p * G, (p + 1) * G).map((row) => row.reward));
  const advantages = G > 1 ? groupAdvantages(rewards).flat() : rewards.map(() => 0); // greedy evaluation has no group
  return rollouts.map((row, i) => ({ ...row, advantage: advantages[i] }));
}

// ─── GRPO ────────────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: groupAdvantages
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
    return group.map((r) => (r - mean(group)) / (std(group) + 1e-8));
  });
}

// Copied from experiment_base/train.ts: mean
const mean = (values: number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;

// Copied from experiment_base/train.ts: std
/** Sample standard deviation, n − 1. */
function std(values: number[]): number {
  const center = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (values.length - 1));
}

// Copied from experiment_base/train.ts: LossInputs
export type LossInputs = {
  logProbs: tf.Tensor2D; // (B, T), under the policy in training
  oldLogProbs: tf.Tensor2D; // (B, T), under the policy that sampled
  refLogProbs?: tf.Tensor2D; // (B, T), under the reference; only if β > 0
  advantages: tf.Tensor2D; // (B, 1), one a completion
  mask: tf.Tensor2D; // (B, T), 1 on tokens that the policy chose, 0 elsewhere
};

// Copied from experiment_base/train.ts: LossOptions
/** `rows`: completions of the whole update, of which these B may be a part. */
export type LossOptions = Pick<Options, 'clipRange' | 'clipRangeHigh' | 'klCoef'> & { rows: number };

// Copied from experiment_base/train.ts: grpoLoss
/**
 * GRPO's loss (DeepSeekMath, eqs. 3 and 4): for each token, the clipped surrogate plus β times the k3 estimate of the
 * KL to the reference; the mean over each completion's tokens; the mean over all completions of the update.
 * @returns `loss`, shape (); `sums` over the masked tokens, shape (4): tokens, k3, ratios clipped low, and high
 */
export function grpoLoss(
  { logProbs, oldLogProbs, refLogProbs, advantages, mask }: LossInputs,
  { clipRange, clipRangeHigh = clipRange, klCoef, rows }: LossOptions,
): { loss: tf.Scalar; sums: tf.Tensor1D } {
  const ratio = tf.exp(tf.sub(logProbs, oldLogProbs)); // ρ = π / π_old
  const clipped = tf.clipByValue(ratio, 1 - clipRange, 1 + clipRangeHigh);
  const surrogate = tf.neg(tf.minimum(tf.mul(ratio, advantages), tf.mul(clipped, advantages)));
  const d = refLogProbs ? tf.sub(refLogProbs, logProbs) : tf.zerosLike(logProbs);
  const k3 = tf.sub(tf.sub(tf.exp(d), d), 1);
  const perToken = refLogProbs ? tf.add(surrogate, tf.mul(k3, klCoef)) : surrogate;
  const perCompletion = tf.div(tf.sum(tf.mul(perToken, mask), 1), tf.sum(mask, 1));
  const loss = tf.div(tf.sum(perCompletion), rows) as tf.Scalar;

  const clippedLow = tf.logicalAnd(tf.less(ratio, 1 - clipRange), tf.less(advantages, 0));
  const clippedHigh = tf.logicalAnd(tf.greater(ratio, 1 + clipRangeHigh), tf.greater(advantages, 0));
  const total = (x: tf.Tensor) => tf.sum(tf.mul(tf.cast(x, 'float32'), mask));
  return { loss, sums: tf.stack([tf.sum(mask), total(k3), total(clippedLow), total(clippedHigh)]) as tf.Tensor1D };
}

// Copied from experiment_base/train.ts: microBatchLoss
/** The loss of a micro-batch of rollouts. `sums` gets the entropy (nats) as a fifth. */
function microBatchLoss(model: Model, batch: Rollout[], options: Options & { rows: number }) {
  const { logProbs, entropies } = scoreCompletions(model, batch, options.temperature);
  const padded = (values: (row: Rollout) => number[]): tf.Tensor2D => {
    const zeros = (row: Rollout) => new Array<number>(logProbs.shape[1] - row.completion.length).fill(0);
    return tf.tensor2d(batch.map((row) => [...values(row), ...zeros(row)]));
  };
  const inputs: LossInputs = {
    logProbs,
    oldLogProbs: padded((row) => row.oldLogProbs),
    refLogProbs: options.klCoef > 0 ? padded((row) => row.refLogProbs!) : undefined,
    advantages: tf.tensor2d(batch.map((row) => [row.advantage])),
    mask: padded((row) => row.completion.map(() => 1)),
  };
  const { loss, sums } = grpoLoss(inputs, options);
  return { loss, sums: tf.concat([sums, tf.sum(tf.mul(entropies, inputs.mask)).reshape([1])]) as tf.Tensor1D };
}

// Copied from experiment_base/train.ts: addReference
/** Log-probabilities of the rollouts under the reference policy, written into them: no gradient. */
export async function addReference(reference: Model, rollouts: Rollout[], options: Options): Promise<void> {
  for (const batch of microBatches(rollouts, options.microBatchTokens)) {
    const logProbs = tf.tidy(() => scoreCompletions(reference, batch, options.temperature).logProbs);
    const rows = (await logProbs.array()) as number[][];
    logProbs.dispose();
    for (const [i, row] of batch.entries()) row.refLogProbs = rows[i].slice(0, row.completion.length);
  }
}

// ─── Ranks ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Which of `count` prompts a rank has, from `begin` to before `end`: as even as it gets, and rank 0 has one in any case. */
export function shard({ rank, size }: { rank: number; size: number }, count: number): { begin: number; end: number } {
  return { begin: Math.ceil((rank * count) / size), end: Math.ceil(((rank + 1) * count) / size) };
}

/** Adds up a gradient over all ranks; it travels as one row of numbers, in a few buckets. Disposes of this rank's own. */
async function allReduceGradients({ allReduceSum }: Communicator, gradients: Params): Promise<Params> {
  const tensors = Object.entries(gradients);
  const flat = new Float32Array(tensors.reduce((sum, [, { size }]) => sum + size, 0));
  let offset = 0;
  for (const [, tensor] of tensors) {
    flat.set(await tensor.data<'float32'>(), offset);
    offset += tensor.size;
  }
  tf.dispose(gradients);
  for (let begin = 0; begin < flat.length; begin += BUCKET) await allReduceSum(flat.subarray(begin, begin + BUCKET));
  offset = 0;
  const total = tensors.map(([name, { shape, size }]) => {
    offset += size;
    return [name, tf.tensor(flat.slice(offset - size, offset), shape)];
  });
  return Object.fromEntries(total);
}

/** What all completions of a step came to, on every rank: each fills in its own rows, and the sum is the whole. */
async function gatherOutcomes({ allReduceSum }: Communicator, rollouts: Rollout[], options: Options & { row: number }) {
  const table = new Float32Array(3 * options.batchSize * options.numGenerations);
  for (const [i, { reward, completion, finishReason }] of rollouts.entries()) {
    table.set([reward, completion.length, Number(finishReason === 'length')], 3 * (options.row + i));
  }
  await allReduceSum(table);
  return Array.from({ length: table.length / 3 }, (_, row): Outcome => {
    const [reward, length, clipped] = table.subarray(3 * row);
    return { reward, completion: new Array(length), finishReason: clipped ? 'length' : 'stop' };
  });
}

/**
 * One update of the policy.
 * @param mine - this rank's rollouts among the `rows` of the update; there may be none
 * @returns the loss, the gradient's norm, whether they were finite, and the sums of {@link microBatchLoss}, over all ranks
 */
export async function updateOnce(
  communicator: Communicator,
  state: TrainingState,
  mine: Rollout[],
  options: Options & { rows: number },
) {
  const parts: tf.Tensor1D[] = [];
  const losses = microBatches(mine, options.microBatchTokens).map((batch) => (model: Model) => {
    const { loss, sums } = microBatchLoss(model, batch, options);
    parts.push(tf.keep(sums));
    return loss;
  });
  const own = accumulateGradients(state.model, losses);
  const sums = await Promise.all(parts.map((part) => part.data()));
  const total = (i: number) => sums.reduce((sum, part) => sum + part[i], 0);
  const totals = Float32Array.of((await own.loss.data())[0], ...[0, 1, 2, 3, 4].map(total));
  tf.dispose([parts, own.loss]);
  await communicator.allReduceSum(totals);
  const gradients = await allReduceGradients(communicator, own.gradients);
  const result = await optimizerStep(state, { loss: tf.scalar(totals[0]), gradients }, options);
  return { ...result, sums: [...totals.subarray(1)] };
}

/**
 * Trains on the rollouts of one step: μ passes, each over all of them in a new order, with an update for every
 * mini-batch size × accumulation steps of them. The order is that of all ranks' rollouts, the same on each.
 * @param mine - this rank's rollouts, of which the first is number `row` among those of all
 * @returns the step's metrics: means over its updates, and over its tokens
 */
export async function update(
  communicator: Communicator,
  state: TrainingState,
  mine: Rollout[],
  { step, row: firstRow, ...options }: Options & { step: number; row: number },
): Promise<Record<string, number>> {
  const rows = options.batchSize * options.numGenerations;
  const perUpdate = (options.miniBatchSize || rows) * options.gradientAccumulationSteps;
  const perStep = options.numIterations * (rows / perUpdate);
  // Updates are counted from 1, so that neither the first nor the last is made with a learning rate of 0.
  const schedule = { warmup: options.warmupSteps, total: options.maxSteps * perStep + 1 };
  const results: Awaited<ReturnType<typeof updateOnce>>[] = [];
  let learningRate = 0;
  for (let iteration = 0; iteration < options.numIterations; iteration++) {
    const order = permutation(rows, options.seed, step, iteration);
    for (let begin = 0; begin < order.length; begin += perUpdate) {
      const window = order.slice(begin, begin + perUpdate).flatMap((row) => mine[row - firstRow] ?? []);
      const number = (step - 1) * perStep + results.length + 1; // since the start of the run, skipped ones too
      learningRate = options.learningRate * scheduleFactor(options.lrScheduler, number, schedule);
      results.push(await updateOnce(communicator, state, window, { ...options, learningRate, rows: perUpdate }));
    }
  }
  const good = results.filter(({ finite }) => finite);
  const perToken = (i: number) => mean(good.map(({ sums }) => sums[i] / sums[0]));
  return {
    loss: mean(good.map(({ loss }) => loss)),
    grad_norm: mean(good.map(({ norm }) => norm)),
    learning_rate: learningRate,
    entropy: perToken(4),
    ...(options.klCoef > 0 ? { kl: perToken(1) } : {}),
    'clip_ratio/low_mean': perToken(2),
    'clip_ratio/high_mean': perToken(3),
    skipped_updates: state.counters.skipped,
  };
}

// ─── Evaluation ──────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: evaluate
/**
 * Asks held-out problems, greedily and, if `samples` > 0, also so many times each as in training.
 * @returns shares: of right greedy answers, of right samples, of problems with at least one right sample
 */
export async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { samples, ...options }: Options & { samples: number },
): Promise<Record<string, number>> {
  const ask = async (G: number, temperature: number): Promise<boolean[]> => {
    const hits: boolean[] = [];
    const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / G));
    for (let begin = 0; begin < problems.length; begin += perBatch) {
      // No step of training is below 0: before and after are asked with the same random numbers.
      const sampling = { ...options, numGenerations: G, temperature, step: -1 - begin };
      const rows = await rollout(model, tokenizer, problems.slice(begin, begin + perBatch), sampling);
      hits.push(...rows.map((row) => row.reward === 1));
    }
    return hits;
  };
  const share = (hits: boolean[]) => mean(hits.map(Number));
  const accuracy = { 'eval/accuracy': share(await ask(1, 0)) };
  if (samples === 0) return accuracy;
  const sampled = await ask(samples, options.temperature);
  const any = problems.map((_, p) => sampled.slice(p * samples, (p + 1) * samples).some(Boolean));
  return { ...accuracy, 'eval/sampled_accuracy': share(sampled), [`eval/pass_at_${samples}`]: share(any) };
}

// Copied from experiment_base/train.ts: Outcome
/** What a rollout came to. */
export type Outcome = Pick<Rollout, 'reward' | 'completion' | 'finishReason'>;

// Copied from experiment_base/train.ts: rolloutMetrics
/** What the rollouts of a step say of the policy. A mean over none is NaN: no answer was wrong, say. */
export function rolloutMetrics(rollouts: Outcome[], { numGenerations }: Options): Record<string, number> {
  const length = (rows: Outcome[]) => mean(rows.map(({ completion }) => completion.length));
  const rewards = rollouts.map((row) => row.reward);
  const groups = rewards.flatMap((_, i) => (i % numGenerations === 0 ? [rewards.slice(i, i + numGenerations)] : []));
  return {
    reward: mean(rewards),
    reward_std: mean(groups.map(std)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    'rewards/accuracy/mean': mean(rewards.map((r) => Number(r === 1))),
    'completions/mean_length': length(rollouts),
    'completions/mean_right_length': length(rollouts.filter((row) => row.reward === 1)),
    'completions/mean_wrong_length': length(rollouts.filter((row) => row.reward !== 1)),
    'completions/clipped_ratio': mean(rollouts.map(({ finishReason }) => Number(finishReason === 'length'))),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** One step: sample, score, update, and say how it went. `rollouts` are this rank's, `metrics` those of all. */
async function trainStep(
  communicator: Communicator,
  state: TrainingState,
  { tokenizer, problems, reference }: { tokenizer: Tokenizer; problems: Problem[]; reference?: Model },
  options: Options & { step: number },
): Promise<{ rollouts: Rollout[]; metrics: Record<string, number> }> {
  const began = performance.now();
  const { begin, end } = shard(communicator, problems.length);
  const row = begin * options.numGenerations;
  const rollouts = await rollout(state.model, tokenizer, problems.slice(begin, end), { ...options, first: begin });
  if (reference) await addReference(reference, rollouts, options);
  const outcomes = await gatherOutcomes(communicator, rollouts, { ...options, row });
  const sampled = performance.now();
  const metrics = await update(communicator, state, rollouts, { ...options, row });
  const ended = performance.now();
  const tokens = outcomes.reduce((sum, { completion }) => sum + completion.length, 0);
  state.counters.tokens += tokens;
  const speeds = {
    num_tokens: state.counters.tokens,
    step_time: (ended - began) / 1000,
    tokens_per_second: (1000 * tokens) / (ended - began),
    rollout_tokens_per_second: (1000 * tokens) / (sampled - began),
    train_tokens_per_second: (1000 * tokens) / (ended - sampled),
  };
  return { rollouts, metrics: { ...rolloutMetrics(outcomes, options), ...metrics, ...speeds } };
}

// Copied from experiment_base/train.ts: toSample
/** A line of completions.jsonl. */
const toSample = ({ problem: { question, answer }, text, completion, reward, advantage }: Rollout) => {
  return { question, answer, completion: text, tokens: completion.length, reward, advantage };
};

async function main(communicator: Communicator): Promise<void> {
  // Rank 0 reads the command line, the data and the checkpoint; the others hear of them from it.
  const options = await fromRankZero(communicator, readOptions);
  const evalDataset = options.evalDataset ?? (options.dataset === SUMS.train ? SUMS.test : undefined);
  const { train, test } = await fromRankZero(communicator, () => loadSplits(loadProblems, { ...options, evalDataset }));
  const backend = await initBackend(options.backend, options);
  await fromRankZero(communicator, () => locatePretrained(options.modelName)); // if it must be fetched, then once
  const initial = await loadPretrained(options.modelName);
  const tokenizer = await loadTokenizer(initial.folder);
  const prompts = [...train, ...test].map((problem) => ({ ...problem, prompt: buildPrompt(tokenizer, problem) }));
  checkPrompts(prompts, initial.config, options);
  // Everything is read before the run's folder is touched: a mistake up to here changes nothing.
  const place = { experiment: EXPERIMENT, ...options };
  const leads = communicator.rank === 0;
  const checkpoint = leads && options.resume ? findRun(options.resume, place).checkpoint : undefined;
  const state = await createTrainingState(initial, { tokens: 0, skipped: 0 }, { ...options, checkpoint });
  await broadcastState(communicator, state);
  const run = await shareRun(communicator, () =>
    openRun({ ...place, options: { ...options, nproc: communicator.size } }),
  );

  const reference = options.klCoef > 0 ? initial : undefined;
  if (!reference) disposeModel(initial);
  const ask = (samples: number) => evaluate(state.model, tokenizer, test, { ...options, samples });
  if (leads) {
    console.log(`backend: ${backend}\nranks: ${communicator.size}`);
    console.log(`run: ${run.folder}${run.step > 0 ? `, from step ${run.step}` : ''}`);
    console.log(`${train.length} problems to train on, ${test.length} held out`);
    if (!run.checkpoint) run.log({ step: 0, ...(await ask(PASS_AT)) });
  }

  const agree = async (asked: boolean) => {
    const votes = Float32Array.of(Number(asked));
    await communicator.allReduceSum(votes);
    return votes[0] > 0;
  };
  const due = (every: number, step: number) => every > 0 && step % every === 0;
  const finished = await runSteps(run, state, { ...options, ...initial, shown: SHOWN, agree }, async (step) => {
    const problems = itemsOfStep(train, step, options);
    const context = { tokenizer, problems, reference };
    const { rollouts, metrics } = await trainStep(communicator, state, context, { ...options, step });
    const last = options.checkSyncSteps > 0 && step === options.maxSteps;
    if (last || due(options.checkSyncSteps, step)) await checkInSync(communicator, trainable(state.model), step);
    if (!leads) return { metrics, samples: [] };
    const evaluation =
      step === options.maxSteps ? await ask(PASS_AT) : due(options.evalSteps, step) ? await ask(0) : {};
    return { metrics: { ...metrics, ...evaluation }, samples: rollouts.slice(0, options.numGenerations).map(toSample) };
  });
  if (finished) await finishRun(run, state, { ...options, ...initial });
  await communicator.barrier(); // all leave together
}

await runRanks(import.meta.url, main, () => readOptions().nproc);
