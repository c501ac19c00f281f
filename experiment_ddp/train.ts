/**
 * Data-parallel GRPO: several processes, the ranks, each with the whole policy and a part of the prompts.
 *
 * Each rank samples, scores and differentiates its own completions. Their gradients, each already divided by the size of
 * the whole update, are added up over the ranks, and every rank makes the same update: the result is that of one process
 * with the whole batch, however many ranks there are. What is simplified: as in experiment_base.
 *
 *   npx tsx experiment_ddp/train.ts --nproc 2                       two processes of this machine
 *   mpirun -np 8 --hostfile hosts npx tsx experiment_ddp/train.ts   several machines
 */
import * as tf from '@tensorflow/tfjs';
// biome-ignore format: a list to skip, not to read
import {
  type Around, accumulateGradients, agree, type Communicator, type Completion, checkInSync, checkRanks, createRunCommand, examples,finishRun, 
  finiteReward, flatten, fromRankZero, gatherRows, generate, integer, itemsOfStep, loadProblems, loadSplits, type Model,
  mean, measureSpeed, microBatches, number, optimizerStep, type Params, type Problem, padRows, parseRunOptions,
  permutation, runRanks, runSteps, type Sequence, sameAnswer, sampleStd, scheduleFactor, scoreCompletions, shard,
  startRun, sumUp, type Tokenizer, type TrainingState, trainable, UserError, unflatten, uniform,
} from '../lib/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_ddp';
const BUCKET = 2 ** 22; // numbers that the ranks send at once: 16 MB
type Shared = { communicator: Communicator };
// Copied from experiment_base/train.ts: SHOWN
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', 'tokens/s': 'tokens_per_second' };
// Copied from experiment_base/train.ts: SUMS
const SUMS = { train: 'data/sums_train.jsonl', test: 'data/sums_test.jsonl' };
// Copied from experiment_base/train.ts: DEFAULTS
const DEFAULTS = { dataset: SUMS.train, maxSteps: 200, evalSteps: 25, maxNewTokens: 32, learningRate: 2.5e-4 };

export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS)
    .description('Data-parallel GRPO. Without options it trains the bundled tiny model on sums.')
    .addHelpText('after', examples(`npx tsx ${EXPERIMENT}/train.ts --nproc 2 --max-steps 50`))
    .optionsGroup('Ranks:')
    .option('--nproc <n>', 'ranks on this machine (below mpirun or srun: as many as it starts)', integer({ min: 1 }), 2)
    .option('--check-sync-steps <n>', "compare all ranks' weights, and at the end (0: never)", integer({ min: 0 }), 25)
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1, max: 65_536 }), 32)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2, max: 65_536 }), 8)
    .option('--num-iterations <n>', 'μ, passes over the completions of a step', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }));

// Copied from experiment_base/train.ts: Options
export type Options = ReturnType<ReturnType<typeof createCommand>['opts']>;

// Copied from experiment_base/train.ts: checkOptions
/** What no single option can check. */
export function checkOptions(options: Options): Options {
  const { batchSize: P, numGenerations: G } = options;
  const perUpdate = (options.miniBatchSize || P * G) * options.gradientAccumulationSteps;
  if ((P * G) % perUpdate === 0) return options;
  throw new UserError(
    `the ${P * G} completions of a step (--batch-size ${P} × --num-generations ${G}) must divide into updates of ${perUpdate} (--mini-batch-size × --gradient-accumulation-steps): choose sizes that do`,
  );
}

const readOptions = (): Options => checkOptions(parseRunOptions(createCommand()));

// ─── Task: prompt and reward ─────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: SYSTEM_PROMPT
const SYSTEM_PROMPT =
  'Solve the problem. Work step by step inside <think></think>, then give the final answer alone inside <answer></answer>.';

// Copied from experiment_base/train.ts: buildPrompt
/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(tokenizer: Tokenizer, { question }: Problem, options: Options): number[] {
  const system = { role: 'system', content: options.systemPrompt ?? SYSTEM_PROMPT };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

// Copied from experiment_base/train.ts: verdict
/** What became of the answer, the last in its tags. Accuracies count the right ones, whatever is rewarded. */
export function verdict(text: string, { answer }: Pick<Problem, 'answer'>): 'right' | 'wrong' | 'missing' {
  const given = [...text.matchAll(/<answer>(.*?)<\/answer>/gs)].at(-1)?.[1].trim();
  return !given ? 'missing' : sameAnswer(given, answer) ? 'right' : 'wrong';
}

// Copied from experiment_base/train.ts: reward
/** The rule that says how good a completion is. A wrong answer in its tags gets a little, as a hint towards the format. */
export function reward(text: string, problem: Pick<Problem, 'answer'>): number {
  return { right: 1, wrong: 0.1, missing: 0 }[verdict(text, problem)];
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
  right: boolean; // whether the answer is, which accuracies count
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
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem, options));
  const completions = await generate(model, prompts, G, {
    ...options,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => uniform(options.seed, step, first + Math.floor(row / G), row % G, position),
  });
  const rollouts = completions.map(({ tokens, logProbs, finishReason }, row) => {
    const [problem, prompt] = [problems[Math.floor(row / G)], prompts[Math.floor(row / G)]];
    const text = tokenizer.decode(tokens, { skipSpecialTokens: true });
    const graded = { reward: finiteReward(reward(text, problem), problem), right: verdict(text, problem) === 'right' };
    return { problem, prompt, completion: tokens, text, finishReason, oldLogProbs: logProbs, ...graded };
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
    return group.map((r) => (r - mean(group)) / (sampleStd(group) + 1e-8));
  });
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
  const padded = (values: (row: Rollout) => number[]) => padRows(batch.map(values), logProbs.shape[1]);
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

/** Adds up a gradient over all ranks; it travels as one row of numbers, in a few buckets. Disposes of this rank's own. */
async function allReduceGradients({ allReduceSum }: Communicator, gradients: Params): Promise<Params> {
  const flat = await flatten(gradients);
  tf.dispose(gradients);
  for (let begin = 0; begin < flat.length; begin += BUCKET) await allReduceSum(flat.subarray(begin, begin + BUCKET));
  return unflatten(flat, gradients);
}

/** What all completions of a step came to, on every rank. The first of this rank's rollouts is number `row` among all. */
async function gatherOutcomes(communicator: Communicator, rollouts: Rollout[], options: Options & { row: number }) {
  const own = rollouts.map((r) => [r.reward, +r.right, r.completion.length, +(r.finishReason === 'length')]);
  const place = { first: options.row, count: options.batchSize * options.numGenerations, width: 4 };
  return (await gatherRows(communicator, own, place)).map(([reward, right, length, clipped]): Outcome => {
    return { reward, right: right === 1, completion: new Array(length), finishReason: clipped ? 'length' : 'stop' };
  });
}

/**
 * One update of the policy. Of its `rows` rollouts `mine` are this rank's; there may be none.
 * @returns the loss, the gradient's norm, whether they were finite, and the sums of {@link microBatchLoss}, over all ranks
 */
export async function updateOnce(state: TrainingState, mine: Rollout[], options: Options & Shared & { rows: number }) {
  const batches = microBatches(mine, options.microBatchTokens);
  const lossOf = (batch: Rollout[]) => (model: Model) => microBatchLoss(model, batch, options);
  const own = accumulateGradients(state.model, batches.map(lossOf));
  const totals = Float32Array.of((await own.loss.data())[0], ...(await sumUp(own.sums, 5)));
  own.loss.dispose();
  await options.communicator.allReduceSum(totals);
  const gradients = await allReduceGradients(options.communicator, own.gradients);
  const result = await optimizerStep(state, { loss: tf.scalar(totals[0]), gradients }, options);
  return { ...result, sums: [...totals.subarray(1)] };
}

/**
 * Trains on the rollouts of one step: μ passes, each over those of all ranks in a new order, with an update for every
 * mini-batch size × accumulation steps of them; `mine` are this rank's, of which the first is number `row` among all.
 * @returns the step's metrics: means over its updates, and over its tokens
 */
export async function update(
  state: TrainingState,
  mine: Rollout[],
  { step, row: firstRow, ...options }: Options & Shared & { step: number; row: number },
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
      results.push(await updateOnce(state, window, { ...options, learningRate, rows: perUpdate }));
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
      hits.push(...rows.map((row) => row.right));
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
export type Outcome = Pick<Rollout, 'reward' | 'right' | 'completion' | 'finishReason'>;

// Copied from experiment_base/train.ts: rolloutMetrics
/** What the rollouts of a step say of the policy. A mean over none is NaN: no answer was wrong, say. */
export function rolloutMetrics(rollouts: Outcome[], { numGenerations }: Options): Record<string, number> {
  const length = (rows: Outcome[]) => mean(rows.map(({ completion }) => completion.length));
  const rewards = rollouts.map((row) => row.reward);
  const groups = rewards.flatMap((_, i) => (i % numGenerations === 0 ? [rewards.slice(i, i + numGenerations)] : []));
  return {
    reward: mean(rewards),
    reward_std: mean(groups.map(sampleStd)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    'rewards/accuracy/mean': mean(rollouts.map(({ right }) => Number(right))),
    'completions/mean_length': length(rollouts),
    'completions/mean_right_length': length(rollouts.filter(({ right }) => right)),
    'completions/mean_wrong_length': length(rollouts.filter(({ right }) => !right)),
    'completions/clipped_ratio': mean(rollouts.map(({ finishReason }) => Number(finishReason === 'length'))),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** One step: sample, score, update, and say how it went. `rollouts` are this rank's, `metrics` those of all. */
async function trainStep(
  state: TrainingState,
  { tokenizer, problems, ...context }: { tokenizer: Tokenizer; problems: Problem[]; reference?: Model } & Shared,
  options: Options & { step: number },
): Promise<{ rollouts: Rollout[]; metrics: Record<string, number> }> {
  const began = performance.now();
  const { begin, end } = shard(context.communicator, problems.length);
  const row = begin * options.numGenerations;
  const rollouts = await rollout(state.model, tokenizer, problems.slice(begin, end), { ...options, first: begin });
  if (context.reference) await addReference(context.reference, rollouts, options);
  const outcomes = await gatherOutcomes(context.communicator, rollouts, { ...options, row });
  const sampled = performance.now();
  const metrics = await update(state, rollouts, { ...options, ...context, row });
  const speeds = measureSpeed(state, outcomes, { began, sampled });
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
  const { train, test } = await fromRankZero(communicator, () => loadSplits(loadProblems, options, SUMS));
  const task = { problems: [...train, ...test], buildPrompt, reference: options.klCoef > 0, communicator };
  const { run, state, tokenizer, reference, source } = await startRun(options, { experiment: EXPERIMENT, ...task });
  if (!run.silent) console.log(`${train.length} problems to train on, ${test.length} held out`);

  const around: Around = {
    ...{ shown: SHOWN, heldOut: test.length },
    evaluate: (how) => evaluate(state.model, tokenizer, test, { ...options, ...how }),
    ask: async (how) => (await rollout(state.model, tokenizer, test.slice(0, 3), { ...options, ...how })).map(toSample),
    agree: (asked) => agree(communicator, asked),
  };
  const finished = await runSteps(run, state, { ...options, ...source, ...around }, async (step) => {
    const context = { tokenizer, problems: itemsOfStep(train, step, options), reference, communicator };
    const { rollouts, metrics } = await trainStep(state, context, { ...options, step });
    const isDue = step % options.checkSyncSteps === 0 || step === options.maxSteps;
    if (options.checkSyncSteps > 0 && isDue) await checkInSync(communicator, trainable(state.model), step);
    return { metrics, samples: rollouts.slice(0, options.numGenerations).map(toSample) };
  });
  if (finished) await finishRun(run, state, { ...options, ...source });
  await communicator.barrier(); // all leave together
}

await runRanks(import.meta.url, main, () => checkRanks(readOptions()));
