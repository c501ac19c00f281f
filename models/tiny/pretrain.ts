/**
 * Makes the bundled tiny model: trains a Llama from random weights to imitate the sloppy pupil, and prints what it can
 * do. Seeded; needs no download and no GPU.
 *
 *   npm run pretrain                                                        writes models/tiny
 *   npm run pretrain -- --pupil guessing --init models/tiny --steps 500 --batch-size 64 --learning-rate 1.5e-3 \
 *     --output-dir runs/guesser                                             another pupil, for experiment_drgrpo
 */
import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command, Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import { type Choice, drawChoice, taskChoices } from '../../data/choices.ts';
import { drawSum, type Sum, sumText, taskSums } from '../../data/sums.ts';
import {
  accumulateGradients,
  adamW,
  clipByGlobalNorm,
  createAdamW,
  generate,
  initBackend,
  integer,
  loadCheckpoint,
  loadTokenizer,
  type Model,
  microBatches,
  normals,
  number,
  type Params,
  parameterShapes,
  parseOptions,
  readConfig,
  runMain,
  type Sequence,
  scheduleFactor,
  scoreCompletions,
  type Tokenizer,
  tensorsToWrite,
  uniform,
  writeSafetensors,
} from '../../lib/index.ts';
import { answerLikeGuesser } from './guesser.ts';
import { answerLikePupil } from './pupil.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from './tokenizer.ts';

/** What a pupil is asked, and what is right; with what it writes. */
type Question = { question: string; answer: string };
type Demonstration = Question & { text: string };

/** A pupil: draws a question and answers it, and has questions that it is never asked here. */
type Pupil = { demonstrate: (random: () => number) => Demonstration; heldOut: () => Question[] };

const sum = (terms: Sum) => ({ question: sumText(terms), answer: String(terms.reduce((a, b) => a + b)) });
const choice = ({ text, right }: Choice) => ({ question: text, answer: String(right) });
const PUPILS: Record<'sloppy' | 'guessing', Pupil> = {
  sloppy: {
    demonstrate: (random) => {
      const terms = drawSum(random);
      return { ...sum(terms), text: answerLikePupil(terms, random) };
    },
    heldOut: () => taskSums().test.map(sum),
  },
  guessing: {
    demonstrate: (random) => {
      const drawn = drawChoice(random);
      return { ...choice(drawn), text: answerLikeGuesser(drawn, random) };
    },
    heldOut: () => taskChoices().test.map(choice),
  },
};

export const command = new Command('pretrain')
  .description('Trains a tiny Llama to imitate a pupil, the sloppy one from random weights.')
  .option('--output-dir <folder>', 'where the checkpoint goes; what is there is replaced', 'models/tiny')
  .addOption(new Option('--pupil <name>', 'whom to imitate').choices(['sloppy', 'guessing']).default('sloppy' as const))
  .option('--init <folder>', 'checkpoint of this architecture to start from (default: random weights)')
  .option('--steps <n>', 'updates', integer({ min: 1 }), 2000)
  .option('--batch-size <n>', 'demonstrations an update', integer({ min: 1 }), 128)
  .option('--learning-rate <x>', 'the highest, after the warm-up', number({ above: 0 }), 2e-3)
  .option('--warmup-steps <n>', 'before the cosine decay to 0', integer({ min: 0 }), 100)
  .option('--seed <n>', 'of the weights and the demonstrations', integer({ min: 0 }), 7)
  .option('--micro-batch-tokens <n>', 'tokens in memory at once', integer({ min: 1 }), 8192)
  .option('--eval-steps <n>', 'evaluate and save every so many updates', integer({ min: 1 }), 500);

const CONFIG = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  vocab_size: VOCABULARY_SIZE,
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

/** All tokens of one homework after the first one, which is the same for all; the last `answer` are the pupil's. */
type Homework = Sequence & { answer: number };

/** A question as the chat template writes it. */
const promptOf = (tokenizer: Tokenizer, question: string) =>
  tokenizer.chat([{ role: 'user', content: question }], { addGenerationPrompt: true });

function toHomework(tokenizer: Tokenizer, { question, text }: Demonstration): Homework {
  const prompt = promptOf(tokenizer, question);
  const answer = [...tokenizer.encode(text), TOKEN_IDS.eos];
  return { prompt: prompt.slice(0, 1), completion: [...prompt.slice(1), ...answer], answer: answer.length };
}

/** Negative mean log-probability of the pupil's tokens; the question's own tokens are not trained on. */
function loss(model: Model, batch: Homework[], count: number): tf.Scalar {
  const { logProbs } = scoreCompletions(model, batch, 1);
  const mask = batch.map(({ completion, answer }) =>
    Array.from({ length: logProbs.shape[1] }, (_, t) => Number(t >= completion.length - answer)),
  );
  // Beyond a row's end the log-probabilities are 0, whatever the mask says.
  return tf.neg(tf.div(tf.sum(tf.mul(logProbs, tf.tensor2d(mask))), count)) as tf.Scalar;
}

/** Share of held-out questions answered rightly: greedy, sampled, and by at least one of eight samples. */
async function evaluate(model: Model, tokenizer: Tokenizer, asked: Question[], seed: number): Promise<string> {
  const prompts = asked.map(({ question }) => promptOf(tokenizer, question));
  const right = async (temperature: number, count: number) => {
    const completions = await generate(model, prompts, count, {
      temperature,
      topK: 0,
      topP: 1,
      maxNewTokens: 128,
      eosTokenIds: [TOKEN_IDS.eos],
      random: (row, position) => uniform(seed, row, position),
    });
    return completions.map(({ tokens }, i) => {
      const given = tokenizer.decode(tokens).match(/<answer>(.*?)<\/answer>/)?.[1];
      return given === asked[Math.floor(i / count)].answer;
    });
  };
  const percent = (hits: boolean[]) => `${((100 * hits.filter(Boolean).length) / hits.length).toFixed(1)} %`;
  const greedy = await right(0, 1);
  const sampled = await right(1, 8);
  const any = asked.map((_, i) => sampled.slice(8 * i, 8 * (i + 1)).some(Boolean));
  return `pass@1 greedy ${percent(greedy)}, pass@1 sampled ${percent(sampled)}, pass@8 ${percent(any)}`;
}

async function save(folder: string, params: Params): Promise<void> {
  const file = join(folder, 'model.safetensors');
  await writeSafetensors(`${file}.partial`, tensorsToWrite(params), { format: 'pt' });
  renameSync(`${file}.partial`, file);
}

/** Everything of the checkpoint but the weights. */
function writeConfiguration(folder: string): void {
  mkdirSync(folder, { recursive: true });
  const write = (name: string, value: object) =>
    writeFileSync(join(folder, name), `${JSON.stringify(value, null, 2)}\n`);
  write('config.json', CONFIG);
  write('generation_config.json', { eos_token_id: TOKEN_IDS.eos, pad_token_id: TOKEN_IDS.pad });
  writeTokenizer(folder);
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
  const { outputDir, steps, seed } = options;
  console.log(`backend: ${await initBackend('auto')}`);
  writeConfiguration(outputDir);
  const tokenizer = await loadTokenizer(outputDir);
  const config = await readConfig(outputDir);
  const pupil = PUPILS[options.pupil];
  const heldOut = pupil.heldOut();
  const never = new Set(heldOut.map(({ question }) => question));

  let { params } = options.init
    ? await loadCheckpoint(options.init)
    : { params: initialize(parameterShapes(config), seed) };
  let state = createAdamW(params);
  const began = performance.now();
  for (let step = 0; step < steps; step++) {
    const batch: Homework[] = [];
    for (let row = 0; batch.length < options.batchSize; row++) {
      let draw = 0;
      const random = () => uniform(seed, step, row, draw++);
      const demonstration = pupil.demonstrate(random);
      if (!never.has(demonstration.question)) batch.push(toHomework(tokenizer, demonstration));
    }
    const count = batch.reduce((sum, { answer }) => sum + answer, 0);
    const losses = microBatches(batch, options.microBatchTokens).map(
      (part) => (model: Model) => loss(model, part, count),
    );
    const result = accumulateGradients({ config, params }, losses);
    const { gradients, norm } = clipByGlobalNorm(result.gradients, 1);
    const factor = scheduleFactor('cosine', step + 1, { warmup: options.warmupSteps, total: steps });
    const learningRate = options.learningRate * factor;
    ({ params, state } = adamW(params, gradients, state, { learningRate, weightDecay: 0.1, beta2: 0.99 }));
    const value = (await result.loss.data())[0];
    tf.dispose([gradients, result.gradients, norm, result.loss]);
    const minutes = ((performance.now() - began) / 60_000).toFixed(1);
    if (step % 50 === 0) console.log(`step ${step + 1}/${steps}  loss ${value.toFixed(4)}  ${minutes} min`);
    if ((step + 1) % options.evalSteps !== 0 && step + 1 !== steps) continue;
    const size = step + 1 === steps ? heldOut.length : 100;
    const skills = await evaluate({ config, params }, tokenizer, heldOut.slice(0, size), seed);
    console.log(`step ${step + 1}/${steps}  ${size} held-out questions: ${skills}  ${minutes} min`);
    await save(outputDir, params);
  }
}

await runMain(import.meta.url, main);
