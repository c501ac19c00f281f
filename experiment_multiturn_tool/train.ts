/**
 * Multi-turn GRPO with a calculator: the policy writes, a tool answers, the policy goes on. A completion is the whole
 * conversation; what the tool wrote conditions what follows, and is not trained on.
 *
 *   npx tsx experiment_multiturn_tool/train.ts             a tiny model learns to ask the calculator, and to believe it
 *   npx tsx experiment_multiturn_tool/train.ts --help      all options
 *
 * What is simplified: as in experiment_base; and all rows of a batch wait while a tool is at work. The tool's answer goes
 * into the assistant's own text, between tags (as in Search-R1, Jin et al. 2025), not into a message of its own.
 */
import { InvalidArgumentError, Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
// biome-ignore format: a list to skip, not to read
import {
  accumulateGradients, type Completion, callTool, checkPrompts, createCalculator, createRunCommand, createTrainingState,
  disposeModel, findRun, finishRun, generate, initBackend, integer, itemsOfStep, loadPretrained, loadProblems,
  loadSplits, loadTokenizer, type Model, microBatches, number, openRun, optimizerStep, type Problem, parseRunOptions,
  permutation, type Reaction, runMain, runSteps, SCHEDULES, type Sequence, scheduleFactor, scoreCompletions,
  type Tokenizer, type Tool, type ToolResult, type TrainingState, UserError, uniform,
} from '../lib/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const EXPERIMENT = 'experiment_multiturn_tool';
const PASS_AT = 8; // samples of each held-out problem, before and after
const SHOWN = { reward: 'reward', 'held-out accuracy': 'eval/accuracy', calls: 'tools/call_frequency' };
const PRODUCTS = { train: 'data/products_train.jsonl', test: 'data/products_test.jsonl' };

export const createCommand = () =>
  createRunCommand(EXPERIMENT, { modelName: 'models/tiny_tool' })
    .description(
      'GRPO over conversations with a calculator. Without options it trains a tiny model on large sums and products.',
    )
    .option('--dataset <file>', 'JSONL with "question" and "answer" a line', PRODUCTS.train)
    .option('--eval-dataset <file>', 'held-out JSONL (default: the bundled one, or --eval-size lines of --dataset)')
    .option('--max-steps <n>', 'steps: each samples once and updates at least once', integer({ min: 1 }), 100)
    .option('--batch-size <n>', 'P, prompts a step', integer({ min: 1 }), 16)
    .option('--num-generations <n>', 'G, completions of each prompt', integer({ min: 2 }), 8)
    .option('--num-iterations <n>', 'μ, passes over the completions of a step', integer({ min: 1 }), 1)
    .option('--mini-batch-size <n>', 'completions a mini-batch (0: all P · G)', integer({ min: 0 }), 0)
    .option('--gradient-accumulation-steps <n>', 'mini-batches an update', integer({ min: 1 }), 1)
    .option('--micro-batch-tokens <n>', 'completion tokens in memory at once', integer({ min: 1 }), 8192)
    .option('--learning-rate <x>', "AdamW's, after the warm-up", number({ min: 0 }), 1e-4)
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
    .option(
      '--max-turns <n>',
      'turns of the policy, at least 2: all but the last may call a tool',
      integer({ min: 2 }),
      3,
    )
    .option('--max-turn-tokens <n>', 'tokens that the policy may write in a turn', integer({ min: 1 }), 32)
    .option(
      '--max-tool-tokens <n>',
      "tokens of a tool's answer, without its tags; a longer one is cut, visibly",
      integer({ min: 1 }),
      24,
    )
    .option('--max-new-tokens <n>', "tokens of a conversation, the tools' included", integer({ min: 1 }), 80)
    .option('--tool-timeout <x>', 'seconds that a tool may take', number({ above: 0, max: 1e6 }), 5)
    .addOption(
      new Option('--reward-weights <list>', `of ${Object.keys(REWARDS)}`)
        .argParser(weights)
        .default([1, 1, 1, 1], '1,1,1,1'),
    )
    .option(
      '--log-completions-interval <n>',
      'a group in completions.jsonl every so many steps',
      integer({ min: 1 }),
      10,
    )
    .option('--eval-steps <n>', 'evaluate every so many steps (0: before and after only)', integer({ min: 0 }), 10)
    .option('--eval-size <n>', 'held-out problems', integer({ min: 1 }), 200);

/** Parses the weights of the rewards, as in 1,1,1,0.5. */
function weights(text: string): number[] {
  const values = text.split(',').map((value) => (value.trim() === '' ? Number.NaN : Number(value)));
  if (values.length === Object.keys(REWARDS).length && values.every(Number.isFinite)) return values;
  throw new InvalidArgumentError(`it must be ${Object.keys(REWARDS).length} numbers with commas between them`);
}

/** `tools`: what the policy may call. */
export type Options = ReturnType<ReturnType<typeof createCommand>['opts']> & { tools: Tool[] };

// Copied from experiment_base/train.ts: checkOptions
/** What no single option can check. */
export function checkOptions({ batchSize: P, numGenerations: G, ...options }: Options): void {
  const perUpdate = (options.miniBatchSize || P * G) * options.gradientAccumulationSteps;
  if ((P * G) % perUpdate === 0) return;
  throw new UserError(
    `the ${P * G} completions of a step (--batch-size ${P} × --num-generations ${G}) must divide into updates of ${perUpdate} (--mini-batch-size × --gradient-accumulation-steps): choose sizes that do`,
  );
}

// ─── Task: prompt, conversation and rewards ──────────────────────────────────────────────────────────────────────────

const SYSTEM_PROMPT =
  'Solve the problem. You can call a tool: write <tool:NAME>what it is to work on</tool>, and its answer follows inside <result></result>. Call one before you answer. Then give the final answer alone inside <answer></answer>. The tools:';

/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(tokenizer: Tokenizer, { question }: Pick<Problem, 'question'>, tools: Tool[]): number[] {
  const lines = tools.map(({ name, description, parameters }) => {
    return `${name}: ${description}${parameters ? ` Arguments as JSON, ${JSON.stringify(parameters)}` : ''}`;
  });
  const system = { role: 'system', content: [SYSTEM_PROMPT, ...lines].join('\n') };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

/**
 * Refuses tools that could not be called, and a tokenizer that cannot write what conversations consist of: with these
 * nothing would ever be learnt.
 * @throws {UserError} naming the tool, or what cannot be written
 */
export function checkTools(tokenizer: Tokenizer, tools: Tool[]): void {
  const names = tools.map(({ name }) => name);
  const bad = names.find((name, i) => !/^[\w-]+$/.test(name) || names.indexOf(name) !== i);
  if (bad !== undefined)
    throw new UserError(`a tool needs a name of its own, of A-Z, a-z, 0-9, _ and -; found "${bad}"`);
  const tags = [...names.map((name) => `<tool:${name}></tool>`), '<result></result>', '<answer></answer>', '[cut]'];
  const broken = tags.find(
    (tag) => tokenizer.decode(tokenizer.encode(tag, { addSpecialTokens: false })).trim() !== tag,
  );
  if (broken === undefined) return;
  throw new UserError(`the model's tokenizer cannot write ${broken}, which conversations need: take another model`);
}

/** One call of a tool, and what came of it. */
export type Call = ToolResult & { tool: string; body: string };

/** What rewards look at: what the policy wrote in each of its turns, and its calls. What a tool wrote is no answer. */
export type Conversation = { turns: string[]; calls: Call[] };

const CALL = /<tool:([\w-]+)>(.*?)<\/tool>/s;
const ANSWER = /<answer>(.*?)<\/answer>/s;

/** What the policy answered at the end, if it did. */
const answerOf = ({ turns }: Pick<Conversation, 'turns'>): string | undefined =>
  ANSWER.exec(turns.at(-1)!)?.[1].trim() || undefined;

/** Whether an answer was given, and is right. */
export const isRight = (given: string | undefined, { answer }: Pick<Problem, 'answer'>): boolean =>
  given !== undefined && sameAnswer(given, answer);

/** +0.2 if the first turn is a call; if not, −0.5, and there the episode ends. */
export const callReward = ({ calls }: Conversation): number => (calls.length > 0 ? 0.2 : -0.5);

/** +0.5 if every call worked; −1 if one failed, and there the episode ends. */
export const executionReward = ({ calls }: Conversation): number =>
  calls.length === 0 ? 0 : calls.every(({ ok }) => ok) ? 0.5 : -1;

/** +0.3 if an answer in its tags follows, −0.8 if not; 0 if the episode has ended before. */
export const formatReward = (conversation: Conversation): number =>
  executionReward(conversation) <= 0 ? 0 : answerOf(conversation) !== undefined ? 0.3 : -0.8;

/** +1 if that answer is right, −0.5 if it is wrong; 0 if there is none. */
export const correctnessReward = (conversation: Conversation, problem: Parameters<typeof isRight>[1]): number =>
  formatReward(conversation) <= 0 ? 0 : isRight(answerOf(conversation), problem) ? 1 : -0.5;

/** In the order of the episode; `--reward-weights` is in this order too. Together from −0.8 to 2. */
export const REWARDS = {
  call: callReward,
  execution: executionReward,
  format: formatReward,
  correctness: correctnessReward,
};

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

/** One stretch of a conversation: who wrote it, and what. */
export type Stretch = { by: 'policy' | 'tool'; text: string };

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

type ConversationOptions = Pick<Options, 'tools' | 'toolTimeout' | 'maxTurns' | 'maxTurnTokens' | 'maxToolTokens'>;

/**
 * The tool's side of all conversations of a batch: `react` is asked after each token that a row has sampled. A row
 * goes on after a call that worked; it ends with an answer, a call that failed, or a budget that is spent.
 */
export function converse(tokenizer: Tokenizer, rowCount: number, options: ConversationOptions) {
  const calls = Array.from({ length: rowCount }, (): Call[] => []);
  const begins = calls.map(() => 0); // where each row's turn begins among its tokens
  const react = async (row: number, { tokens }: Pick<Completion, 'tokens'>): Promise<Reaction | undefined> => {
    const turn = tokens.slice(begins[row]);
    const isLong = turn.length >= options.maxTurnTokens;
    // What closes an answer or a call ends in ">": most tokens need no second look.
    if (!isLong && !tokenizer.decode(turn.slice(-1)).includes('>')) return undefined;
    const text = tokenizer.decode(turn);
    if (ANSWER.test(text)) return { finish: 'stop' };
    const [, name, body] = CALL.exec(text) ?? [];
    if (name === undefined) return isLong ? { finish: 'length' } : undefined;
    if (calls[row].length + 1 >= options.maxTurns) return { finish: 'length' };
    const tool = options.tools.find((tool) => tool.name === name);
    const result = tool
      ? await callTool(tool, body, options)
      : { ok: false, text: `error: there is no tool "${name}"` };
    calls[row].push({ tool: name, body, ...result });
    if (!result.ok) return { finish: 'stop' };
    const force = resultTokens(tokenizer, result.text, options);
    begins[row] = tokens.length + force.length;
    return { force };
  };
  return { calls, react };
}

/** A tool's answer as the tokens that are fed: tokenised here, once. */
export function resultTokens(tokenizer: Tokenizer, text: string, { maxToolTokens }: Pick<Options, 'maxToolTokens'>) {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  // Parted after each "<", no tag in it and no special token (the end of a turn, say) becomes one.
  const tokens = text.split(/(?<=<)/).flatMap(encode);
  const isCut = tokens.length > maxToolTokens;
  return [...encode('<result>'), ...tokens.slice(0, maxToolTokens), ...encode(isCut ? ' [cut]</result>' : '</result>')];
}

/** Who wrote what, in order, special tokens included. */
function transcribe(tokenizer: Tokenizer, { tokens, mask }: Pick<Completion, 'tokens' | 'mask'>): Stretch[] {
  const begins = [...mask.keys()].filter((i) => i === 0 || mask[i] !== mask[i - 1]);
  return begins.map((begin, i) => ({
    by: mask[begin] === 1 ? 'policy' : 'tool',
    text: tokenizer.decode(tokens.slice(begin, begins[i + 1])),
  }));
}

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
  const prompts = problems.map((problem) => buildPrompt(tokenizer, problem, options.tools));
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
    const rewards = Object.values(REWARDS).map((reward) => reward(conversation, problem));
    const total = rewards.reduce((sum, reward, i) => sum + options.rewardWeights[i] * reward, 0);
    const scores = { rewards, reward: total, right: isRight(answerOf(conversation), problem) };
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

/**
 * What the loss of a micro-batch is computed from: everything padded to T, and 0 wherever a tool wrote. What a tool wrote
 * may be very unlikely to the policy: at 0, ratio and KL stay finite there until the mask takes them out.
 * @param logProbs - (B, T), under the policy in training
 */
export function lossInputs(logProbs: tf.Tensor2D, batch: Rollout[], { klCoef }: Pick<Options, 'klCoef'>): LossInputs {
  const padded = (values: (row: Rollout) => number[]): tf.Tensor2D => {
    const zeros = (row: Rollout) => new Array<number>(logProbs.shape[1] - row.completion.length).fill(0);
    return tf.tensor2d(batch.map((row) => [...values(row), ...zeros(row)]));
  };
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
  const parts: tf.Tensor1D[] = [];
  const losses = microBatches(window, options.microBatchTokens).map((batch) => (model: Model) => {
    const { loss, sums } = microBatchLoss(model, batch, { ...options, rows: window.length });
    parts.push(tf.keep(sums));
    return loss;
  });
  const result = await optimizerStep(state, accumulateGradients(state.model, losses), options);
  const sums = await Promise.all(parts.map((part) => part.data()));
  tf.dispose(parts);
  return { ...result, sums: [0, 1, 2, 3, 4].map((i) => sums.reduce((sum, part) => sum + part[i], 0)) };
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

/** Calls a conversation, and the share of calls that failed (NaN if there was none). */
function callMetrics(rollouts: Pick<Rollout, 'calls'>[]): Record<string, number> {
  const calls = rollouts.flatMap((row) => row.calls);
  return {
    'tools/call_frequency': calls.length / rollouts.length,
    'tools/failure_frequency': mean(calls.map(({ ok }) => Number(!ok))),
  };
}

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
    reward_std: mean(groups.map(std)),
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
  const ended = performance.now();
  const tokens = rollouts.reduce((sum, { completion }) => sum + completion.length, 0);
  state.counters.tokens += tokens;
  const speeds = {
    num_tokens: state.counters.tokens,
    step_time: (ended - began) / 1000,
    tokens_per_second: (1000 * tokens) / (ended - began),
    rollout_tokens_per_second: (1000 * tokens) / (sampled - began),
    train_tokens_per_second: (1000 * tokens) / (ended - sampled),
  };
  return { rollouts, metrics: { ...rolloutMetrics(rollouts, options), ...metrics, ...speeds } };
}

/** A line of completions.jsonl. */
export const toSample = ({ problem: { question, answer }, ...row }: Rollout) => {
  const { transcript, calls, reward, rewards, advantage } = row;
  const completion = transcript.map(({ text }) => text).join('');
  return { question, answer, completion, tokens: row.completion.length, reward, rewards, advantage, transcript, calls };
};

async function main(): Promise<void> {
  const parsed = parseRunOptions(createCommand());
  const options = { ...parsed, tools: [await createCalculator()] };
  checkOptions(options);
  const evalDataset = options.evalDataset ?? (options.dataset === PRODUCTS.train ? PRODUCTS.test : undefined);
  const { train, test } = loadSplits(loadProblems, { ...options, evalDataset });
  const backend = await initBackend(options.backend, options);
  const initial = await loadPretrained(options.modelName);
  const tokenizer = await loadTokenizer(initial.folder);
  checkTools(tokenizer, options.tools);
  const prompts = [...train, ...test].map((problem) => {
    return { ...problem, prompt: buildPrompt(tokenizer, problem, options.tools) };
  });
  checkPrompts(prompts, initial.config, options);
  // Everything is read before the run's folder is touched: a mistake up to here changes nothing.
  const place = { experiment: EXPERIMENT, ...options };
  const checkpoint = options.resume && findRun(options.resume, place).checkpoint;
  const state = await createTrainingState(initial, { tokens: 0, skipped: 0 }, { ...options, checkpoint });
  const run = openRun({ ...place, options: parsed });
  console.log(`backend: ${backend}\nrun: ${run.folder}${run.step > 0 ? `, from step ${run.step}` : ''}`);

  const reference = options.klCoef > 0 ? initial : undefined;
  if (!reference) disposeModel(initial);
  const ask = (samples: number) => evaluate(state.model, tokenizer, test, { ...options, samples });
  console.log(`${train.length} problems to train on, ${test.length} held out`);
  if (!run.checkpoint) run.log({ step: 0, ...(await ask(PASS_AT)) });

  const finished = await runSteps(run, state, { ...options, ...initial, shown: SHOWN }, async (step) => {
    const problems = itemsOfStep(train, step, options);
    const { rollouts, metrics } = await trainStep(state, { tokenizer, problems, reference }, { ...options, step });
    const due = options.evalSteps > 0 && step % options.evalSteps === 0;
    const evaluation = step === options.maxSteps ? await ask(PASS_AT) : due ? await ask(0) : {};
    const shown =
      step % options.logCompletionsInterval === 0 || step === 1 ? rollouts.slice(0, options.numGenerations) : [];
    return { metrics: { ...metrics, ...evaluation }, samples: shown.map(toSample) };
  });
  if (finished) await finishRun(run, state, { ...options, ...initial });
}

await runMain(import.meta.url, main);
