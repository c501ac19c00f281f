/**
 * Vanilla GRPO: Group Relative Policy Optimization (Shao et al. 2024, "DeepSeekMath", section 4.1).
 *
 * Each step samples G completions of each of P prompts, scores them with a reward, and moves the policy towards those
 * that scored above the mean of their own group. There is no value network: the group is the baseline.
 *
 *   npx tsx experiment_base/train.ts             the bundled tiny model learns to carry
 *   npx tsx experiment_base/train.ts --help      all options
 *
 * What is simplified: the reward is a rule, not a trained model; sampling and training take turns in one process; the
 * reference policy, where there is one (--kl-coef above 0), stays the initial policy for the whole run.
 */
import * as tf from '@tensorflow/tfjs';
// biome-ignore format: a list to skip, not to read
import {
  type Around, accumulateGradients, type Completion, createRunCommand, examples, finishRun, finiteReward, generate, integer,
  itemsOfStep, loadProblems, loadSplits, type Model, mean, measureSpeed, microBatches, number, optimizerStep,
  type Problem, padRows, parseRunOptions, permutation, runMain, runSteps, type Sequence, sameAnswer, sampleStd,
  scheduleFactor, scoreCompletions, startRun, sumUp, type Tokenizer, type TrainingState, UserError, uniform,
} from '../lib/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_base';
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', 'tokens/s': 'tokens_per_second' };
const SUMS = { train: 'data/sums_train.jsonl', test: 'data/sums_test.jsonl' };
const DEFAULTS = { dataset: SUMS.train, maxSteps: 200, evalSteps: 25, maxNewTokens: 32, learningRate: 2.5e-4 };

export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS)
    .description('Vanilla GRPO. Without options it trains the bundled tiny model on sums.')
    .addHelpText(
      'after',
      examples(
        `npx tsx ${EXPERIMENT}/train.ts --num-generations 4 --max-steps 50`,
        `npx tsx ${EXPERIMENT}/train.ts --resume latest`,
      ),
    )
    .optionsGroup('GRPO:')
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1, max: 65_536 }), 32)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2, max: 65_536 }), 8)
    .option('--num-iterations <n>', 'μ, passes over the completions of a step', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }));

export type Options = ReturnType<ReturnType<typeof createCommand>['opts']>;

/** What no single option can check. */
export function checkOptions(options: Options): Options {
  const { batchSize: P, numGenerations: G } = options;
  const perUpdate = (options.miniBatchSize || P * G) * options.gradientAccumulationSteps;
  if ((P * G) % perUpdate === 0) return options;
  throw new UserError(
    `the ${P * G} completions of a step (--batch-size ${P} × --num-generations ${G}) must divide into updates of ${perUpdate} (--mini-batch-size × --gradient-accumulation-steps): choose sizes that do`,
  );
}

// ─── Task: prompt and reward ─────────────────────────────────────────────────────────────────────────────────────────

const SYSTEM_PROMPT =
  'Solve the problem. Work step by step inside <think></think>, then give the final answer alone inside <answer></answer>.';

/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(tokenizer: Tokenizer, { question }: Problem, options: Options): number[] {
  const system = { role: 'system', content: options.systemPrompt ?? SYSTEM_PROMPT };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

/** What became of the answer, the last in its tags. Accuracies count the right ones, whatever is rewarded. */
export function verdict(text: string, { answer }: Pick<Problem, 'answer'>): 'right' | 'wrong' | 'missing' {
  const given = [...text.matchAll(/<answer>(.*?)<\/answer>/gs)].at(-1)?.[1].trim();
  return !given ? 'missing' : sameAnswer(given, answer) ? 'right' : 'wrong';
}

/** The rule that says how good a completion is. A wrong answer in its tags gets a little, as a hint towards the format. */
export function reward(text: string, problem: Pick<Problem, 'answer'>): number {
  return { right: 1, wrong: 0.1, missing: 0 }[verdict(text, problem)];
}

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

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
 * A draw depends on seed, step, problem, sample and position alone: not on what else is in the batch.
 */
export async function rollout(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { step, ...options }: Options & { step: number },
): Promise<Rollout[]> {
  const G = options.numGenerations;
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem, options));
  const completions = await generate(model, prompts, G, {
    ...options,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => uniform(options.seed, step, Math.floor(row / G), row % G, position),
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

export type LossInputs = {
  logProbs: tf.Tensor2D; // (B, T), under the policy in training
  oldLogProbs: tf.Tensor2D; // (B, T), under the policy that sampled
  refLogProbs?: tf.Tensor2D; // (B, T), under the reference; only if β > 0
  advantages: tf.Tensor2D; // (B, 1), one a completion
  mask: tf.Tensor2D; // (B, T), 1 on tokens that the policy chose, 0 elsewhere
};

/** `rows`: completions of the whole update, of which these B may be a part. */
export type LossOptions = Pick<Options, 'clipRange' | 'clipRangeHigh' | 'klCoef'> & { rows: number };

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

/** Log-probabilities of the rollouts under the reference policy, written into them: no gradient. */
export async function addReference(reference: Model, rollouts: Rollout[], options: Options): Promise<void> {
  for (const batch of microBatches(rollouts, options.microBatchTokens)) {
    const logProbs = tf.tidy(() => scoreCompletions(reference, batch, options.temperature).logProbs);
    const rows = (await logProbs.array()) as number[][];
    logProbs.dispose();
    for (const [i, row] of batch.entries()) row.refLogProbs = rows[i].slice(0, row.completion.length);
  }
}

/**
 * One update of the policy, from the rollouts in `window`.
 * @returns the loss, the gradient's norm, whether they were finite, and the sums of {@link microBatchLoss}
 */
export async function updateOnce(state: TrainingState, window: Rollout[], options: Options) {
  const batches = microBatches(window, options.microBatchTokens);
  const lossOf = (batch: Rollout[]) => (model: Model) =>
    microBatchLoss(model, batch, { ...options, rows: window.length });
  const { sums, ...gradient } = accumulateGradients(state.model, batches.map(lossOf));
  const result = await optimizerStep(state, gradient, options);
  return { ...result, sums: await sumUp(sums, 5) };
}

/**
 * Trains on the rollouts of one step: μ passes, each over all of them in a new order, with an update for every
 * mini-batch size × accumulation steps of them.
 * @returns the step's metrics: means over its updates, and over its tokens
 */
export async function update(
  state: TrainingState,
  rollouts: Rollout[],
  { step, ...options }: Options & { step: number },
): Promise<Record<string, number>> {
  const perUpdate = (options.miniBatchSize || rollouts.length) * options.gradientAccumulationSteps;
  const perStep = options.numIterations * (rollouts.length / perUpdate);
  // Updates are counted from 1, so that neither the first nor the last is made with a learning rate of 0.
  const schedule = { warmup: options.warmupSteps, total: options.maxSteps * perStep + 1 };
  const results: Awaited<ReturnType<typeof updateOnce>>[] = [];
  let learningRate = 0;
  for (let iteration = 0; iteration < options.numIterations; iteration++) {
    const order = permutation(rollouts.length, options.seed, step, iteration);
    for (let begin = 0; begin < order.length; begin += perUpdate) {
      const window = order.slice(begin, begin + perUpdate).map((row) => rollouts[row]);
      const number = (step - 1) * perStep + results.length + 1; // since the start of the run, skipped ones too
      learningRate = options.learningRate * scheduleFactor(options.lrScheduler, number, schedule);
      results.push(await updateOnce(state, window, { ...options, learningRate }));
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

/** What a rollout came to. */
export type Outcome = Pick<Rollout, 'reward' | 'right' | 'completion' | 'finishReason'>;

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

/** One step: sample, score, update, and say how it went. */
export async function trainStep(
  state: TrainingState,
  { tokenizer, problems, reference }: { tokenizer: Tokenizer; problems: Problem[]; reference?: Model },
  options: Options & { step: number },
): Promise<{ rollouts: Rollout[]; metrics: Record<string, number> }> {
  const began = performance.now();
  const rollouts = await rollout(state.model, tokenizer, problems, options);
  if (reference) await addReference(reference, rollouts, options);
  const sampled = performance.now();
  const metrics = await update(state, rollouts, options);
  const speeds = measureSpeed(state, rollouts, { began, sampled });
  return { rollouts, metrics: { ...rolloutMetrics(rollouts, options), ...metrics, ...speeds } };
}

/** A line of completions.jsonl. */
const toSample = ({ problem: { question, answer }, text, completion, reward, advantage }: Rollout) => {
  return { question, answer, completion: text, tokens: completion.length, reward, advantage };
};

async function main(): Promise<void> {
  const options = checkOptions(parseRunOptions(createCommand()));
  const { train, test } = loadSplits(loadProblems, options, SUMS);
  const task = { problems: [...train, ...test], buildPrompt, reference: options.klCoef > 0 };
  const { run, state, tokenizer, reference, source } = await startRun(options, { experiment: EXPERIMENT, ...task });
  console.log(`${train.length} problems to train on, ${test.length} held out`);

  const around: Around = {
    ...{ shown: SHOWN, heldOut: test.length },
    evaluate: (how) => evaluate(state.model, tokenizer, test, { ...options, ...how }),
    ask: async (how) => (await rollout(state.model, tokenizer, test.slice(0, 3), { ...options, ...how })).map(toSample),
  };
  const finished = await runSteps(run, state, { ...options, ...source, ...around }, async (step) => {
    const problems = itemsOfStep(train, step, options);
    const { rollouts, metrics } = await trainStep(state, { tokenizer, problems, reference }, { ...options, step });
    return { metrics, samples: rollouts.slice(0, options.numGenerations).map(toSample) };
  });
  if (finished) await finishRun(run, state, { ...options, ...source });
}

await runMain(import.meta.url, main);
