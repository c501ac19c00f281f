/**
 * Multi-turn GRPO with a search tool: questions about a country that does not exist, so that looking things up is the
 * only way to know. Some answers are one search away, for others the first search tells what to look for next.
 *
 *   npx tsx experiment_multiturn_qa/train.ts             a tiny model learns to search, to read, and to search again
 *   npx tsx experiment_multiturn_qa/train.ts --help      all options
 *
 * What is simplified: as in experiment_multiturn_tool, of which this is the loop; only the tool, the questions and what
 * counts as right are others (the setting is that of Search-R1, Jin et al. 2025).
 */
import { Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
// biome-ignore format: a list to skip, not to read
import {
  type Around, accumulateGradients, type Completion, createRunCommand, examples, finishRun, generate, integer,
  itemsOfStep, loadCorpus, loadQuestions, loadSplits, type Model, mean, measureSpeed, microBatches, number,
  optimizerStep, type Question as Problem, padRows, parseRunOptions, permutation, runMain, runSteps, type Sequence,
  sampleStd, scheduleFactor, scoreCompletions, searchTool, startRun, sumUp, type Tokenizer, type TrainingState,
  UserError, uniform,
} from '../lib/index.ts';
// biome-ignore format: a list to skip, not to read
import {
  buildPrompt, type Call, type ConversationOptions, callMetrics, checkCorpus, checkTools, converse, createRetriever,
  RETRIEVERS, REWARDS, rewardWeights, type Stretch, scoreConversation, transcribe,
} from './conversation.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_multiturn_qa';
// Copied from experiment_multiturn_tool/train.ts: SHOWN
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', calls: 'tools/call_frequency' };
const COUNTRY = { train: 'data/encyclopedia_train.jsonl', test: 'data/encyclopedia_test.jsonl' };
// biome-ignore format: two lines
const DEFAULTS = {
  modelName: 'models/tiny_qa', dataset: COUNTRY.train,
  maxSteps: 100, evalSteps: 5, maxNewTokens: 160, learningRate: 1e-4,
};
const HELP = {
  dataset: 'JSONL with "question" and "answer" a line, or HotpotQA\'s .json',
  maxNewTokens: "tokens of a conversation, the tools' included",
};

export const createCommand = () =>
  createRunCommand(EXPERIMENT, DEFAULTS, HELP)
    .description('GRPO over conversations with a search tool. Without options, a tiny model on an invented country.')
    .addHelpText('after', examples('npm run qa', 'npm run qa -- --top-k-passages 1 --max-steps 50'))
    .optionsGroup('Search:')
    .option('--corpus <file>', 'JSONL with "title" and "text" a line, or HotpotQA\'s .json', 'data/encyclopedia.jsonl')
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
    .option('--num-iterations <n>', 'μ, passes over the completions of a step', integer({ min: 1, max: 1000 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--kl-coef <x>', 'β, weight of the KL to the initial policy', number({ min: 0, max: 1000 }), 0)
    .option('--clip-range <x>', 'ε, how far the ratio may fall below 1', number({ min: 0, max: 1 }), 0.2)
    .option('--clip-range-high <x>', 'how far it may rise above 1 (default: as --clip-range)', number({ min: 0 }));

// Copied from experiment_multiturn_tool/train.ts: Options
/** `tools`: what the policy may call. */
export type Options = ReturnType<ReturnType<typeof createCommand>['opts']> & Pick<ConversationOptions, 'tools'>;

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

// ─── Rollout ─────────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_multiturn_tool/train.ts: Rollout
/** One conversation, with all that training needs to know of it. */
export type Rollout = Sequence & {
  problem: Problem;
  transcript: Stretch[];
  calls: Call[];
  mask: number[]; // of each completion token: 1 where the policy chose it, 0 where a tool's answer was fed
  finishReason: Completion['finishReason'];
  oldLogProbs: number[]; // of each token when it was sampled (π_old), as the sampler recorded them; 0 where mask is 0
  refLogProbs?: number[]; // the same under the reference policy; only if β > 0
  rewards: number[]; // in the order of REWARDS
  reward: number; // their weighted sum
  right: boolean; // whether the policy's answer is, with or without a tool
  advantage: number;
};

// Copied from experiment_multiturn_tool/train.ts: rollout
/**
 * Holds G conversations about each problem and scores them: P · G rollouts, those of problem 0 first.
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
  const { calls, react } = converse(tokenizer, problems.length * G, options);
  const completions = await generate(model, prompts, G, {
    ...options,
    react,
    eosTokenIds: model.config.eosTokenIds,
    random: (row, position) => uniform(options.seed, step, Math.floor(row / G), row % G, position),
  });
  const rollouts = completions.map(({ tokens, logProbs, mask, finishReason }, row) => {
    const [problem, prompt] = [problems[Math.floor(row / G)], prompts[Math.floor(row / G)]];
    const transcript = transcribe(tokenizer, { tokens, mask });
    const turns = transcript.filter(({ by }) => by === 'policy').map(({ text }) => text);
    const conversation = { turns, calls: calls[row] };
    const scores = scoreConversation(conversation, problem, options.rewardWeights);
    const sampled = { prompt, completion: tokens, mask, oldLogProbs: logProbs, finishReason };
    return { problem, ...sampled, transcript, calls: calls[row], ...scores };
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

// Copied from experiment_multiturn_tool/train.ts: lossInputs
/**
 * What the loss of a micro-batch is computed from: everything padded to T, and 0 wherever a tool wrote. What a tool wrote
 * may be very unlikely to the policy: at 0, ratio and KL stay finite there until the mask takes them out.
 * @param logProbs - (B, T), under the policy in training
 */
export function lossInputs(logProbs: tf.Tensor2D, batch: Rollout[], { klCoef }: Pick<Options, 'klCoef'>): LossInputs {
  const padded = (values: (row: Rollout) => number[]) => padRows(batch.map(values), logProbs.shape[1]);
  const mask = padded((row) => row.mask);
  const own = (x: tf.Tensor2D): tf.Tensor2D => tf.mul(x, mask);
  return {
    logProbs: own(logProbs),
    oldLogProbs: padded((row) => row.oldLogProbs),
    refLogProbs: klCoef > 0 ? own(padded((row) => row.refLogProbs!)) : undefined,
    advantages: tf.tensor2d(batch.map((row) => [row.advantage])),
    mask,
  };
}

// Copied from experiment_multiturn_tool/train.ts: microBatchLoss
/** The loss of a micro-batch of rollouts. `sums` gets the entropy (nats) as a fifth. */
function microBatchLoss(model: Model, batch: Rollout[], options: Options & { rows: number }) {
  const { logProbs, entropies } = scoreCompletions(model, batch, options.temperature);
  const inputs = lossInputs(logProbs, batch, options);
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

// Copied from experiment_base/train.ts: updateOnce
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

// Copied from experiment_base/train.ts: update
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

// Copied from experiment_multiturn_tool/train.ts: evaluate
/**
 * Asks held-out problems, greedily and, if `samples` > 0, also so many times each as in training.
 * @returns shares: of right greedy answers, of right samples, of problems with at least one right sample; and, of the
 *   greedy conversations, calls a conversation and the share of calls that failed
 */
export async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  problems: Problem[],
  { samples, ...options }: Options & { samples: number },
): Promise<Record<string, number>> {
  const ask = async (G: number, temperature: number): Promise<Rollout[]> => {
    const all: Rollout[] = [];
    const perBatch = Math.max(1, Math.floor((options.batchSize * options.numGenerations) / G));
    for (let begin = 0; begin < problems.length; begin += perBatch) {
      // No step of training is below 0: before and after are asked with the same random numbers.
      const sampling = { ...options, numGenerations: G, temperature, step: -1 - begin };
      all.push(...(await rollout(model, tokenizer, problems.slice(begin, begin + perBatch), sampling)));
    }
    return all;
  };
  const share = (hits: boolean[]) => mean(hits.map(Number));
  const greedy = await ask(1, 0);
  const calls = Object.entries(callMetrics(greedy)).map(([name, value]) => [`eval/${name}`, value]);
  const accuracy = { 'eval/accuracy': share(greedy.map(({ right }) => right)), ...Object.fromEntries(calls) };
  if (samples === 0) return accuracy;
  const sampled = (await ask(samples, options.temperature)).map(({ right }) => right);
  const any = problems.map((_, p) => sampled.slice(p * samples, (p + 1) * samples).some(Boolean));
  return { ...accuracy, 'eval/sampled_accuracy': share(sampled), [`eval/pass_at_${samples}`]: share(any) };
}

// Copied from experiment_multiturn_tool/train.ts: rolloutMetrics
/** What the rollouts of a step say of the policy. Lengths are of what the policy wrote, without the tools' answers. */
export function rolloutMetrics(rollouts: Rollout[], { numGenerations }: Options): Record<string, number> {
  const length = (rows: Rollout[]) => mean(rows.map(({ mask }) => mask.reduce((sum, own) => sum + own)));
  const rewards = rollouts.map((row) => row.reward);
  const groups = rewards.flatMap((_, i) => (i % numGenerations === 0 ? [rewards.slice(i, i + numGenerations)] : []));
  const parts = Object.keys(REWARDS).map((name, i) => [
    `rewards/${name}/mean`,
    mean(rollouts.map((row) => row.rewards[i])),
  ]);
  return {
    reward: mean(rewards),
    reward_std: mean(groups.map(sampleStd)),
    frac_reward_zero_std: mean(groups.map((group) => Number(group.every((r) => r === group[0])))),
    ...Object.fromEntries(parts),
    'rewards/accuracy/mean': mean(rollouts.map(({ right }) => Number(right))),
    ...callMetrics(rollouts),
    'completions/mean_length': length(rollouts),
    'completions/mean_right_length': length(rollouts.filter(({ right }) => right)),
    'completions/mean_wrong_length': length(rollouts.filter(({ right }) => !right)),
    'completions/clipped_ratio': mean(rollouts.map(({ finishReason }) => Number(finishReason === 'length'))),
  };
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_base/train.ts: trainStep
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
export const toSample = ({ problem: { question, answers }, ...row }: Rollout) => {
  const { transcript, calls, reward, rewards, advantage } = row;
  const [answer, completion] = [answers.join(' / '), transcript.map(({ text }) => text).join('')];
  return { question, answer, completion, tokens: row.completion.length, reward, rewards, advantage, transcript, calls };
};

async function main(): Promise<void> {
  const parsed = parseRunOptions(createCommand());
  const options: Options = checkOptions({ ...parsed, tools: [] });
  const passages = loadCorpus(parsed.corpus);
  const { train, test } = loadSplits(loadQuestions, options, COUNTRY);
  for (const questions of [train, test]) checkCorpus(questions, { ...parsed, passages });
  const { run, state, tokenizer, reference, source } = await startRun(parsed, {
    experiment: EXPERIMENT,
    problems: [...train, ...test],
    prepare: async (tokenizer) => {
      options.tools.push(searchTool(await createRetriever(passages, parsed), parsed));
      checkTools(tokenizer, options.tools);
    },
    buildPrompt: (tokenizer, problem) => buildPrompt(tokenizer, problem, options),
    reference: options.klCoef > 0,
  });
  console.log(`${train.length} questions to train on, ${test.length} held out; ${passages.length} passages to search`);

  const around: Around = {
    ...{ shown: SHOWN, heldOut: test.length },
    evaluate: (how) => evaluate(state.model, tokenizer, test, { ...options, ...how }),
    ask: async (how) => (await rollout(state.model, tokenizer, test.slice(0, 3), { ...options, ...how })).map(toSample),
  };
  const finished = await runSteps(run, state, { ...options, ...source, ...around }, async (step) => {
    const problems = itemsOfStep(train, step, options);
    const { rollouts, metrics } = await trainStep(state, { tokenizer, problems, reference }, { ...options, step });
    const isLogged = step % options.logCompletionsInterval === 0 || step === 1;
    return { metrics, samples: isLogged ? rollouts.slice(0, options.numGenerations).map(toSample) : [] };
  });
  if (finished) await finishRun(run, state, { ...options, ...source });
}

await runMain(import.meta.url, main);
