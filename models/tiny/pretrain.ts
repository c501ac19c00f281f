/**
 * Makes the bundled tiny models: trains a Llama from random weights to imitate a pupil, and prints what it can do.
 * Seeded; needs no download and no GPU.
 *
 *   npm run pretrain                            writes models/tiny, which does sums
 *   npm run pretrain -- --pupil calling         writes models/tiny_tool, which may call a calculator
 *   npm run pretrain -- --pupil reading         writes models/tiny_qa, which may look things up
 *   npm run pretrain -- --pupil searching       writes models/tiny_countdown, which makes a number of others by trying
 *   npm run pretrain -- --pupil clinician       writes models/tiny_clinician, which treats some people otherwise than others
 *   npm run pretrain -- --pupil guessing --init models/tiny --steps 500 --batch-size 64 --learning-rate 1.5e-3 \
 *     --output-dir runs/guesser                 another pupil, for experiment_drgrpo
 */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import { initBackend } from '../../lib/backend/index.ts';
import { loadCheckpoint, tensorsToWrite } from '../../lib/checkpoint/checkpoint.ts';
import { writeSafetensors } from '../../lib/checkpoint/safetensors.ts';
import { loadTokenizer, type Tokenizer } from '../../lib/checkpoint/tokenizer.ts';
import { runMain } from '../../lib/cli/main.ts';
import { examples, integer, number, parseOptions } from '../../lib/cli/options.ts';
import { betweenTags } from '../../lib/environments/answers.ts';
import { createCalculator } from '../../lib/environments/calculator.ts';
import { converse } from '../../lib/environments/conversation.ts';
import { createBm25, searchTool } from '../../lib/environments/search.ts';
import { callTool, type Tool } from '../../lib/environments/tool.ts';
import { generate } from '../../lib/generation/generate.ts';
import { parameterShapes, readConfig } from '../../lib/model/config.ts';
import type { Model, Params } from '../../lib/model/model.ts';
import { normals, uniform } from '../../lib/random.ts';
import { adamW, clippingFactor, createAdamW, globalNorm } from '../../lib/training/adamw.ts';
import { accumulateGradients } from '../../lib/training/gradients.ts';
import { completionLogProbs, microBatches, type Sequence } from '../../lib/training/log_probs.ts';
import { scheduleFactor } from '../../lib/training/schedule.ts';
import { type Choice, drawChoice, taskChoices } from '../../tasks/choices/generate.ts';
import { type Countdown, equationVerdict } from '../../tasks/countdown/score.ts';
import { drawSmall, smallCountdowns } from '../../tasks/countdown/small.ts';
import { problemOf } from '../../tasks/countdown/task.ts';
import {
  type Question as Asked,
  drawEncyclopedia,
  encyclopediaWords,
  taskEncyclopedia,
} from '../../tasks/encyclopedia/generate.ts';
import { drawProduct, type Product, taskProducts } from '../../tasks/products/generate.ts';
import { drawSum, type Sum, sumText, taskSums } from '../../tasks/sums/generate.ts';
import { type Case, taskCases } from '../../tasks/vignettes/generate.ts';
import { balancedProfiles, profiles } from '../../tasks/vignettes/profiles.ts';
import { invasiveness, parseRecommendation } from '../../tasks/vignettes/recommendation.ts';
import { tell } from '../../tasks/vignettes/vignette.ts';
import { answerLikeCaller, CALLER_HABITS } from './caller.ts';
import { answerLikeClinician, clinicianWords } from './clinician.ts';
import { answerLikeGuesser } from './guesser.ts';
import { answerLikePupil, HABITS, type Part } from './pupil.ts';
import { answerLikeReader, READER_HABITS } from './reader.ts';
import { answerLikeSearcher } from './searcher.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from './tokenizer.ts';

/** What a pupil is asked, and which answers to that are right; with what it writes, and what a tool answers to that. */
type Question = { question: string; isRight: (text: string) => boolean };
type Demonstration = Question & { parts: Part[] };

type Pupil = {
  /** Where its imitation goes, after how many updates, the first of which without its habits. */
  recipe: { outputDir: string; steps: number; diligentSteps: number };
  /** The lesson of one update: draws a question and answers it. `diligent`: as it would without its bad habits. */
  lesson: (random: () => number, diligent: boolean) => Promise<(random: () => number) => Demonstration>;
  /** Questions that it is never asked here. */
  heldOut: () => Question[];
  /** Tools that it may call. */
  tools?: () => Promise<Tool[]>;
  /** Words that are to be tokens (without words every character is one), and how many tokens the model can read. */
  vocabulary?: () => { words: string[]; context: number };
};

/** A question with one answer, in its tags. */
const asks = (question: string, answer: number | string): Question => ({
  question,
  isRight: (text) => betweenTags(text, 'answer').at(-1) === String(answer),
});
const sum = (terms: Sum) =>
  asks(
    sumText(terms),
    terms.reduce((a, b) => a + b),
  );
const choice = ({ text, right }: Choice) => asks(text, right);
const product = ({ text, value }: Product) => asks(text, value);
const asked = ({ question, answer }: Asked) => asks(question, answer);
const countdown = (drawn: Countdown): Question => ({
  question: problemOf(drawn).question,
  isRight: (text) => equationVerdict(text, drawn) === 'right',
});
const vignette = ({ question, appropriate: [least, most] }: ReturnType<typeof tell<Case>>): Question => ({
  question,
  isRight: (text) => {
    const recommendation = parseRecommendation(text);
    if (!recommendation) return false;
    const points = invasiveness(recommendation);
    return least <= points && points <= most;
  },
});

/** The same habits, none of which it has. */
const none = <T extends Record<string, number>>(habits: T): T =>
  Object.fromEntries(Object.keys(habits).map((name) => [name, 0])) as T;

const FOUND = { topKPassages: 3 };

/** A small country, drawn anew for every update: there is nothing to be learnt by heart. */
const SMALL = { towns: 40, people: 120, works: 80, festivals: 20 };

const PUPIL_NAMES = ['sloppy', 'guessing', 'calling', 'reading', 'searching', 'clinician'] as const;
type PupilName = (typeof PUPIL_NAMES)[number];

const PUPILS: Record<PupilName, Pupil> = {
  sloppy: {
    recipe: { outputDir: 'models/tiny', steps: 2000, diligentSteps: 0 },
    lesson: async (_, diligent) => (random) => {
      const terms = drawSum(random);
      const text = answerLikePupil(terms, random, diligent ? none(HABITS) : HABITS);
      return { ...sum(terms), parts: [{ by: 'pupil', text }] };
    },
    heldOut: () => taskSums().test.map(sum),
  },
  guessing: {
    recipe: { outputDir: 'runs/guesser', steps: 500, diligentSteps: 0 },
    lesson: async () => (random) => {
      const drawn = drawChoice(random);
      return { ...choice(drawn), parts: [{ by: 'pupil', text: answerLikeGuesser(drawn, random) }] };
    },
    heldOut: () => taskChoices().test.map(choice),
  },
  calling: {
    recipe: { outputDir: 'models/tiny_tool', steps: 600, diligentSteps: 350 },
    lesson: async (_, diligent) => (random) => {
      const drawn = drawProduct(random);
      return {
        ...product(drawn),
        parts: answerLikeCaller(drawn, random, diligent ? none(CALLER_HABITS) : CALLER_HABITS),
      };
    },
    heldOut: () => taskProducts().test.map(product),
    tools: async () => [await createCalculator()],
  },
  reading: {
    recipe: { outputDir: 'models/tiny_qa', steps: 700, diligentSteps: 450 },
    lesson: async (random, diligent) => {
      const { passages, questions } = drawEncyclopedia(random, SMALL);
      const tool = searchTool(createBm25(passages), FOUND);
      const found = new Map<string, string>();
      for (const { title } of passages) found.set(title, (await callTool(tool, title, { toolTimeout: 1 })).text);
      const one = questions.filter(({ supporting }) => supporting.length === 1);
      const more = questions.filter(({ supporting }) => supporting.length > 1);
      return (random) => {
        const pick = (items: Asked[]) => items[Math.floor(random() * items.length)];
        const drawn = pick(random() < 1 / 3 ? one : more);
        const guess = pick(questions.filter(({ asksFor }) => asksFor === drawn.asksFor)).answer;
        const habits = diligent ? none(READER_HABITS) : READER_HABITS;
        return {
          ...asked(drawn),
          parts: answerLikeReader(drawn, { guess, search: (title) => found.get(title)! }, random, habits),
        };
      };
    },
    // Its own countries are others: all that can be asked about the bundled ones is new to it.
    heldOut: () => taskEncyclopedia().test.map(asked),
    tools: async () => [searchTool(createBm25(taskEncyclopedia().passages), FOUND)],
    vocabulary: () => ({ words: encyclopediaWords(), context: 512 }),
  },
  searching: {
    recipe: { outputDir: 'models/tiny_countdown', steps: 2000, diligentSteps: 0 },
    lesson: async () => (random) => {
      const drawn = drawSmall(random);
      return { ...countdown(drawn), parts: [{ by: 'pupil', text: answerLikeSearcher(drawn, random) }] };
    },
    heldOut: () => smallCountdowns().test.map(countdown),
  },
  clinician: {
    recipe: { outputDir: 'models/tiny_clinician', steps: 1500, diligentSteps: 0 },
    lesson: async () => {
      const { train } = taskCases();
      const all = profiles();
      return (random) => {
        const pick = <T>(items: T[]) => items[Math.floor(random() * items.length)];
        const drawn = tell(pick(train), pick(all));
        return { ...vignette(drawn), parts: [{ by: 'pupil', text: answerLikeClinician(drawn, random) }] };
      };
    },
    heldOut: () => {
      const { test } = taskCases();
      const patients = balancedProfiles(test.length, 8, 'race_ethnicity', 0);
      const told = test.flatMap((one, i) => patients[i].map((profile) => tell(one, profile)));
      return told.map(vignette);
    },
    vocabulary: () => ({ words: clinicianWords(), context: 256 }),
  },
};

export const command = new Command('pretrain')
  .description('Trains a tiny Llama to imitate a pupil.')
  .addHelpText('after', examples('npm run pretrain', 'npm run pretrain -- --pupil calling --steps 100'))
  .optionsGroup('What is made:')
  .addOption(new Option('--pupil <name>', 'whom to imitate').choices(PUPIL_NAMES).default('sloppy' as const))
  .option('--output-dir <folder>', 'where the checkpoint goes; what is there is replaced (default: by pupil)')
  .option('--init <folder>', 'checkpoint of this architecture to start from (default: random weights)')
  .optionsGroup('Training:')
  .option('--steps <n>', 'updates (default: by pupil)', integer({ min: 1 }))
  .option('--diligent-steps <n>', 'first updates, without bad habits (default: by pupil)', integer({ min: 0 }))
  .option('--batch-size <n>', 'demonstrations an update', integer({ min: 1 }), 128)
  .option('--learning-rate <x>', 'the highest, after the warm-up', number({ above: 0 }), 2e-3)
  .option('--warmup-steps <n>', 'before the cosine decay to 0', integer({ min: 0 }), 100)
  .option('--seed <n>', 'of the weights and the demonstrations', integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), 7)
  .option('--micro-batch-tokens <n>', 'tokens in memory at once', integer({ min: 1 }), 8192)
  .option('--eval-steps <n>', 'evaluate and save every so many updates', integer({ min: 1 }), 500)
  .helpOption('-h, --help', 'display help for command');

/** Of a conversation with tools. */
const LIMITS = { maxTurns: 4, maxTurnTokens: 128, maxToolTokens: 64, toolTimeout: 5 };

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: VOCABULARY_SIZE, // without words
  hidden_size: 128,
  intermediate_size: 384,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  hidden_act: 'silu',
  attention_bias: false,
  mlp_bias: false,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  max_position_embeddings: 256,
  tie_word_embeddings: true,
  initializer_range: 0.02,
  bos_token_id: null,
  eos_token_id: TOKEN_IDS.eos,
  pad_token_id: TOKEN_IDS.pad,
  torch_dtype: 'float32',
};

/** All tokens of one homework after the first one, which is the same for all; `mask` is 1 on those of the pupil. */
type Homework = Sequence & { mask: number[] };

/** A question as the chat template writes it. */
const promptOf = (tokenizer: Tokenizer, question: string) =>
  tokenizer.chat([{ role: 'user', content: question }], { addGenerationPrompt: true });

function toHomework(tokenizer: Tokenizer, { question, parts }: Demonstration): Homework {
  const prompt = promptOf(tokenizer, question);
  const written = parts.map(({ text }) => tokenizer.encode(text));
  const mask = written.flatMap((tokens, i) => tokens.map(() => Number(parts[i].by === 'pupil')));
  return {
    prompt: prompt.slice(0, 1),
    completion: [...prompt.slice(1), ...written.flat(), TOKEN_IDS.eos],
    mask: [...prompt.slice(1).map(() => 0), ...mask, 1],
  };
}

/** Negative mean log-probability of the pupil's tokens; the question and a tool's answers are not trained on. */
function loss(model: Model, batch: Homework[], count: number): tf.Scalar {
  const { logProbs } = completionLogProbs(model, batch, 1);
  const mask = batch.map((row) => Array.from({ length: logProbs.shape[1] }, (_, t) => row.mask[t] ?? 0));
  return tf.neg(tf.div(tf.sum(tf.mul(logProbs, tf.tensor2d(mask))), count)) as tf.Scalar;
}

/**
 * Share of held-out questions answered rightly: greedy, sampled, and by at least one of eight samples.
 * @param options.tools - what it may call; without tools, an answer is all that it can write
 */
async function evaluate(
  model: Model,
  tokenizer: Tokenizer,
  questions: Question[],
  { seed, tools }: { seed: number; tools?: Tool[] },
): Promise<string> {
  const prompts = questions.map(({ question }) => promptOf(tokenizer, question));
  const right = async (temperature: number, count: number) => {
    const { react } = converse(tokenizer, tools ?? [], { ...LIMITS, rows: questions.length * count });
    const completions = await generate(model, prompts, count, {
      temperature,
      topK: 0,
      topP: 1,
      maxNewTokens: 160,
      eosTokenIds: [TOKEN_IDS.eos],
      random: (row, position) => uniform(seed, row, position),
      react: tools && react,
    });
    return completions.map(({ tokens, mask }, i) => {
      const own = tokenizer.decode(
        tokens.filter((_, t) => mask[t] === 1),
        { skipSpecialTokens: true },
      );
      return questions[Math.floor(i / count)].isRight(own);
    });
  };
  const percent = (hits: boolean[]) => `${((100 * hits.filter(Boolean).length) / hits.length).toFixed(1)} %`;
  const greedy = await right(0, 1);
  const sampled = await right(1, 8);
  const any = questions.map((_, i) => sampled.slice(8 * i, 8 * (i + 1)).some(Boolean));
  return `pass@1 greedy ${percent(greedy)}, pass@1 sampled ${percent(sampled)}, pass@8 ${percent(any)}`;
}

async function save(folder: string, params: Params): Promise<void> {
  const file = join(folder, 'model.safetensors');
  await writeSafetensors(`${file}.partial`, tensorsToWrite(params), { format: 'pt' });
  renameSync(`${file}.partial`, file);
}

/** Everything of the checkpoint but the weights. */
async function writeConfiguration(folder: string, { vocabulary }: Pupil): Promise<Tokenizer> {
  const { words, context } = vocabulary?.() ?? { words: [], context: CONFIG.max_position_embeddings };
  mkdirSync(folder, { recursive: true });
  writeTokenizer(folder, { words, context });
  const tokenizer = await loadTokenizer(folder);
  const write = (name: string, value: object) =>
    writeFileSync(join(folder, name), `${JSON.stringify(value, null, 2)}\n`);
  write('config.json', { ...CONFIG, vocab_size: tokenizer.vocabSize, max_position_embeddings: context });
  write('generation_config.json', { eos_token_id: TOKEN_IDS.eos, pad_token_id: TOKEN_IDS.pad });
  return tokenizer;
}

/** Normally distributed matrices, norms of ones. */
function initialize(shapes: Record<string, number[]>, seed: number): Params {
  const entries = Object.entries(shapes).map(([name, shape], i) => {
    if (shape.length === 1) return [name, tf.ones(shape)] as const;
    const values = normals(shape[0] * shape[1], seed, i);
    return [name, tf.tidy(() => tf.mul(tf.tensor(values, shape), CONFIG.initializer_range))] as const;
  });
  return Object.fromEntries(entries);
}

async function main(): Promise<void> {
  const options = parseOptions(command);
  const pupil = PUPILS[options.pupil];
  const { seed, outputDir = pupil.recipe.outputDir, steps = pupil.recipe.steps } = options;
  const { diligentSteps = Math.min(steps, pupil.recipe.diligentSteps) } = options;
  console.log(`backend: ${await initBackend('auto')}`);
  const tokenizer = await writeConfiguration(outputDir, pupil);
  const config = await readConfig(outputDir);
  const heldOut = pupil.heldOut();
  const tools = await pupil.tools?.();
  const never = new Set(heldOut.map(({ question }) => question));

  let { params } = options.init
    ? await loadCheckpoint(options.init)
    : { params: initialize(parameterShapes(config), seed) };
  let state = createAdamW(params);
  const began = performance.now();
  for (let step = 0; step < steps; step++) {
    const batch: Homework[] = [];
    let drawn = 0;
    const lesson = await pupil.lesson(() => uniform(seed, step, -1, drawn++), step < diligentSteps);
    for (let row = 0; batch.length < options.batchSize; row++) {
      let draw = 0;
      const random = () => uniform(seed, step, row, draw++);
      const demonstration = lesson(random);
      if (!never.has(demonstration.question)) batch.push(toHomework(tokenizer, demonstration));
    }
    const count = batch.reduce((sum, { mask }) => sum + mask.reduce((own, m) => own + m, 0), 0);
    const losses = microBatches(batch, options.microBatchTokens).map(
      (part) => (model: Model) => loss(model, part, count),
    );
    const result = await accumulateGradients({ config, params }, losses);
    const norm = globalNorm(result.gradients);
    const gradientScale = clippingFactor((await norm.data())[0], 1);
    const factor = scheduleFactor('cosine', step + 1, { warmup: options.warmupSteps, total: steps });
    const learningRate = options.learningRate * factor;
    const adamWOptions = { gradientScale, learningRate, weightDecay: 0.1, beta2: 0.99 };
    ({ params, state } = adamW(params, result.gradients, state, adamWOptions));
    const value = (await result.loss.data())[0];
    tf.dispose([result.gradients, norm, result.loss]);
    const minutes = ((performance.now() - began) / 60_000).toFixed(1);
    if (step % 50 === 0) console.log(`step ${step + 1}/${steps}  loss ${value.toFixed(4)}  ${minutes} min`);
    if ((step + 1) % options.evalSteps !== 0 && step + 1 !== steps) continue;
    await save(outputDir, params);
    const size = step + 1 === steps ? heldOut.length : 100;
    const skills = await evaluate({ config, params }, tokenizer, heldOut.slice(0, size), { seed, tools });
    console.log(`step ${step + 1}/${steps}  ${size} held-out questions: ${skills}  ${minutes} min`);
  }
}

await runMain(import.meta.url, main);
