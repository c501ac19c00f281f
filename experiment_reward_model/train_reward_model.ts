/**
 * A reward model, trained from preferences: the first half of RLHF (Ouyang et al. 2022, "Training language models to follow
 * instructions with human feedback", section 3.5).
 *
 * People are shown two answers to a question, and say which one they prefer. The reward model is a language model with one
 * number on top, which is to be higher for the answer that was preferred. The people here are simulated, so that it is known
 * what they want, and what they fall for: they want right answers, and they like long ones.
 *
 *   npm run reward-model                                  makes a reward model like the bundled one, in runs/reward_model
 *   npm run reward-model -- --length-bias 0               the same, from people without that weakness
 *   npm run reward-model -- --preferences mine.jsonl      from your own: {"prompt", "chosen", "rejected"} a line
 *
 * What is simplified: two answers are compared, not four to nine at once; everybody agrees on what they like.
 */
import { mkdirSync, readdirSync } from 'node:fs';
import { Command } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import { type ChatMessage, isConversation } from '../lib/checkpoint/chat_template.ts';
import { saveCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { scores } from '../lib/model/llama.ts';
import { mergeLora } from '../lib/model/lora.ts';
import type { Model } from '../lib/model/model.ts';
import { withScoreHead } from '../lib/model/score_head.ts';

import { createAdamW } from '../lib/training/adamw.ts';
import { accumulateGradients } from '../lib/training/gradients.ts';
import type { Sequence } from '../lib/training/log_probs.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import { scheduleFactor } from '../lib/training/schedule.ts';
import { judgedSequence, scoresOf } from '../lib/training/scores.ts';
import type { TrainingState } from '../lib/training/state.ts';

import { loadProblems } from '../lib/environments/dataset.ts';
import { readJsonLines } from '../lib/environments/json_lines.ts';

import { backendOptions } from '../lib/cli/backend_options.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { permutation, uniform } from '../lib/random.ts';
import { inGroups, mean } from '../lib/statistics.ts';
import { shown } from '../lib/text.ts';
import { createCommand as createPolicyCommand, rollout } from '../experiment_base/train.ts';
import { initBackend } from '../lib/backend/index.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

export const createCommand = () =>
  new Command('reward-model')
    .description('Trains a reward model from preferences; without options, from simulated ones on sums.')
    .addHelpText('after', examples('npm run reward-model -- --length-bias 0 --output-dir runs/unbiased'))
    .optionsGroup('Whose answers are compared, by whom:')
    .option('--model-name <name>', 'who answers, and what the reward model starts from', 'models/tiny')
    .option('--dataset <file>', 'JSONL with a question and an answer a line', 'tasks/sums/train.jsonl')
    .option('--num-pairs <n>', 'pairs of answers to each question', integer({ min: 1, max: 512 }), 2)
    .option(
      '--length-bias <x>',
      'what a token is worth to people, who find 1 for right',
      number({ min: -10, max: 10 }),
      0.02,
    )
    .option('--indecision <x>', 'how large a difference people barely see', number({ above: 0, max: 100 }), 0.25)
    .option('--max-new-tokens <n>', 'of an answer', integer({ min: 1 }), 32)
    .option('--preferences <file>', 'JSONL with prompt, chosen and rejected a line, in place of all that')
    .optionsGroup('Training:')
    .option('--epochs <n>', 'passes over the pairs', integer({ min: 1, max: 1000 }), 2)
    .option('--batch-size <n>', 'pairs an update', integer({ min: 1, max: 65_536 }), 64)
    .option('--learning-rate <x>', 'the highest, before it falls to 0', number({ min: 0, max: 1 }), 1e-3)
    .option('--warmup-steps <n>', 'updates over which it rises', integer({ min: 0 }), 10)
    .option('--centering <x>', 'weight of the term that keeps scores around 0', number({ min: 0, max: 1000 }), 0.01)
    .option('--held-out <n>', 'pairs that are not trained on', integer({ min: 1 }), 400)
    .option('--micro-batch-tokens <n>', 'tokens of answers in memory at once', integer({ min: 1 }), 8192)
    .option(
      '--seed <n>',
      'of answers, preferences, weights and order',
      integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
      0,
    )
    .option('--output-dir <folder>', 'where the reward model goes: a new folder', 'runs/reward_model')
    .helpOption('-h, --help', 'display help for command')
    .optionsGroup('Backend:')
    .addOption(backendOptions.backend())
    .addOption(backendOptions.gpu())
    .addOption(backendOptions.threads())
    .addOption(backendOptions.blas());

export type Options = ReturnType<ReturnType<typeof createCommand>['opts']>;

// ─── People ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** What people say when they are shown two answers. */
export type Preference = { prompt: string | ChatMessage[]; chosen: string; rejected: string };

/** What people are like: what a token is worth to them, who find 1 for right, and how large a difference they barely see. */
export type People = { lengthBias: number; indecision: number };

/** What an answer is worth to people: what the rule says, and `lengthBias` for each token. */
export const utility = (answer: { reward: number; completion: number[] }, { lengthBias }: People): number =>
  answer.reward + lengthBias * answer.completion.length;

/** How likely the first of two answers is preferred, by what they are worth: σ((u₁ − u₂) / indecision). */
export const preferenceProbability = (first: number, second: number, { indecision }: People): number =>
  1 / (1 + Math.exp((second - first) / indecision));

/** Has the model answer each question `2 · numPairs` times, and people compare the answers two by two. */
async function askPeople(model: Model, tokenizer: Tokenizer, options: Options): Promise<Preference[]> {
  const policy = createPolicyCommand().parse(['node', 'train.ts']).opts();
  const problems = loadProblems(options.dataset);
  const preferences: Preference[] = [];
  for (let begin = 0; begin < problems.length; begin += 100) {
    const asked = problems.slice(begin, begin + 100);
    if (begin % 1000 === 0) console.log(`answers to questions ${begin + 1}–${begin + 1000} of ${problems.length} …`);
    const draw = (problem: number, ...token: number[]) => uniform(options.seed, 0, begin + problem, ...token);
    const sampling = { ...policy, numGenerations: 2 * options.numPairs, maxNewTokens: options.maxNewTokens };
    const pairs = inGroups(await rollout(model, tokenizer, asked, draw, sampling), 2);
    for (const [i, [first, second]] of pairs.entries()) {
      if (first.text === second.text) continue;
      const probability = preferenceProbability(utility(first, options), utility(second, options), options);
      const isFirst = uniform(options.seed, 1, begin, i) < probability;
      const [chosen, rejected] = (isFirst ? [first, second] : [second, first]).map(({ text }) => text);
      preferences.push({ prompt: [{ role: 'user', content: first.problem.question }], chosen, rejected });
    }
  }
  const same = problems.length * options.numPairs - preferences.length;
  console.log(`${preferences.length} pairs were compared, ${same} others had the same text twice`);
  return preferences;
}

/**
 * Preferences of a file, those of a prompt side by side, so that none of it is held out while another is trained on.
 * @throws {UserError} naming the line, if one is no preference
 */
export function loadPreferences(file: string, seed: number): Preference[] {
  const read = readJsonLines(file, ({ prompt, chosen, rejected }) => {
    for (const [name, text] of Object.entries({ chosen, rejected })) {
      if (typeof text !== 'string' || text === '') {
        throw new Error(`"${name}" must be a text, found ${shown(text ?? null)}`);
      }
    }
    if (chosen === rejected) throw new Error('"chosen" and "rejected" are the same: there is no preference');
    if ((typeof prompt === 'string' && prompt !== '') || isConversation(prompt)) {
      return { prompt, chosen, rejected } as Preference;
    }
    throw new Error(`"prompt" must be a text or a list of { role, content }, found ${shown(prompt ?? null)}`);
  });
  const byPrompt = new Map<string, Preference[]>();
  for (const preference of read) {
    const key = JSON.stringify(preference.prompt);
    byPrompt.set(key, [...(byPrompt.get(key) ?? []), preference]);
  }
  const all = [...byPrompt.values()];
  return permutation(all.length, seed).flatMap((i) => all[i]);
}

// ─── Reward model ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Two answers as the reward model reads them: what was chosen, and what was rejected. */
export type Pair = [chosen: Sequence, rejected: Sequence];

/**
 * How unlikely the preferences are (Bradley & Terry 1952; Ouyang et al. 2022, eq. 1): −log σ(r_chosen − r_rejected), and
 * `centering` · (r_chosen + r_rejected)², without which only differences would be determined (Eisenstein et al. 2023).
 * @param scores - shape (B, 2): of the chosen and of the rejected answers
 * @param options.pairs - of the whole update, of which the B of a micro-batch may be a part
 */
export function preferenceLoss(
  scores: tf.Tensor2D,
  { centering, pairs }: { centering: number; pairs: number },
): tf.Scalar {
  const [chosen, rejected] = tf.unstack(scores, 1);
  const unlikely = rejected.sub(chosen).softplus(); // −log σ(x) = log(1 + e⁻ˣ)
  return unlikely.add(chosen.add(rejected).square().mul(centering)).sum().div(pairs);
}

/** One update, from a batch of pairs: one micro-batch after the other. */
export async function updateOnce(state: TrainingState, batch: Pair[], learningRate: number, options: Options) {
  const longest = Math.max(...batch.flat().map(({ completion }) => completion.length));
  const perMicroBatch = Math.max(1, Math.floor(options.microBatchTokens / (2 * longest)));
  const losses = inGroups(batch, perMicroBatch).map((pairs) => (model: Model) => {
    const scored = tf.reshape(scores(model, pairs.flat()), [-1, 2]) as tf.Tensor2D;
    return preferenceLoss(scored, { ...options, pairs: batch.length });
  });
  const gradient = await accumulateGradients(state.model, losses);
  return optimizerStep(state, gradient, { learningRate, weightDecay: 0, maxGradNorm: 1 });
}

/** How often the answer that was preferred scores higher. */
async function agreement(model: Model, pairs: Pair[], options: Options): Promise<number> {
  const scored = inGroups(await scoresOf(model, pairs.flat(), options), 2);
  return mean(scored.map(([chosen, rejected]) => Number(chosen > rejected)));
}

// ─── The run ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Makes the folder before time is spent, and refuses one that holds something: a model would be lost. */
function makeFolder(folder: string): void {
  try {
    mkdirSync(folder, { recursive: true });
    if (readdirSync(folder).length === 0) return;
  } catch (error) {
    throw new UserError(
      `cannot write to ${folder} (${(error as NodeJS.ErrnoException).code}): name another --output-dir`,
    );
  }
  throw new UserError(`--output-dir ${folder} holds something already: name a new folder, or remove it`);
}

function refuseLong(pairs: Pair[], context: number): void {
  const longest = Math.max(...pairs.flat().map(({ prompt, completion }) => prompt.length + completion.length));
  if (longest <= context) return;
  throw new UserError(
    `an answer has ${longest} tokens with its prompt, more than the ${context} that the model can read`,
  );
}

async function main(): Promise<void> {
  const options = parseOptions(createCommand());
  makeFolder(options.outputDir);
  console.log(`backend: ${await initBackend(options.backend, options)}`);
  const { model: policy, tokenizer } = await loadWithTokenizer(options.modelName);
  const preferences = options.preferences
    ? loadPreferences(options.preferences, options.seed)
    : await askPeople(policy, tokenizer, options);
  if (preferences.length <= options.heldOut) {
    throw new UserError(
      `${preferences.length} preferences are too few to hold out ${options.heldOut}: lower --held-out`,
    );
  }
  const pairs = preferences.map(({ prompt, chosen, rejected }): Pair => {
    return [judgedSequence(tokenizer, prompt, chosen), judgedSequence(tokenizer, prompt, rejected)];
  });
  refuseLong(pairs, policy.config.maxPositionEmbeddings);
  const [heldOut, train] = [pairs.slice(0, options.heldOut), pairs.slice(options.heldOut)];
  console.log(`${train.length} preferences to train on, ${heldOut.length} held out`);

  const model = withScoreHead({ ...policy, params: mergeLora(policy) }, options.seed);
  const state: TrainingState = { model, optimizer: createAdamW(model.params), counters: { skipped: 0 } };
  const perEpoch = Math.ceil(train.length / options.batchSize);
  const schedule = { warmup: options.warmupSteps, total: options.epochs * perEpoch + 1 };
  for (let epoch = 0; epoch < options.epochs; epoch++) {
    const order = permutation(train.length, options.seed, epoch);
    const losses: number[] = [];
    for (const [i, batch] of inGroups(order, options.batchSize).entries()) {
      const learningRate = options.learningRate * scheduleFactor('linear', epoch * perEpoch + i + 1, schedule);
      const pairs = batch.map((pair) => train[pair]);
      losses.push((await updateOnce(state, pairs, learningRate, options)).loss);
    }
    const right = await agreement(state.model, heldOut, options);
    console.log(
      `epoch ${epoch + 1}/${options.epochs} · loss ${mean(losses).toFixed(3)} · agrees with ${(100 * right).toFixed(1)} % of the held-out preferences`,
    );
  }
  await saveCheckpoint(options.outputDir, { source: policy.folder, params: state.model.params });
  console.log(`reward model: ${options.outputDir}`);
}

await runMain(import.meta.url, main);
