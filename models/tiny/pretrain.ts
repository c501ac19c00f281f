/**
 * Makes the bundled tiny model: trains a Llama from random weights to imitate the sloppy pupil, and prints what it can
 * do. Seeded; needs no download and no GPU.
 *
 *   npm run pretrain            (writes models/tiny)
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { drawSum, type Sum, sumText, taskSums } from '../../data/sums.ts';
import {
  accumulateGradients,
  adamW,
  clipByGlobalNorm,
  createAdamW,
  generate,
  initBackend,
  loadTokenizer,
  type Model,
  microBatches,
  normals,
  type Params,
  parameterShapes,
  readConfig,
  type Sequence,
  scheduleFactor,
  scoreCompletions,
  type Tokenizer,
  uniform,
  writeSafetensors,
} from '../../lib/index.ts';
import { answerLikePupil } from './pupil.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from './tokenizer.ts';

const FOLDER = process.env.TINY_FOLDER ?? 'models/tiny';
const SEED = 7;
const STEPS = Number(process.env.TINY_STEPS ?? 5000);
const ROWS = 128;
const LEARNING_RATE = 2e-3;
const WARMUP = 100;
const MICRO_BATCH_TOKENS = 8192;

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

/** One demonstration: the question as the chat template writes it, and the pupil's answer. */
function demonstration(tokenizer: Tokenizer, terms: Sum, random: () => number): Homework {
  const prompt = tokenizer.chat([{ role: 'user', content: sumText(terms) }], { addGenerationPrompt: true });
  const answer = [...tokenizer.encode(answerLikePupil(terms, random)), TOKEN_IDS.eos];
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

/** Share of held-out sums answered rightly: greedy, sampled, and by at least one of eight samples. */
async function evaluate(model: Model, tokenizer: Tokenizer, sums: Sum[]): Promise<string> {
  const prompts = sums.map((terms) =>
    tokenizer.chat([{ role: 'user', content: sumText(terms) }], { addGenerationPrompt: true }),
  );
  const right = async (temperature: number, count: number) => {
    const completions = await generate(model, prompts, count, {
      temperature,
      topK: 0,
      topP: 1,
      maxNewTokens: 48,
      eosTokenIds: [TOKEN_IDS.eos],
      random: (row, position) => uniform(SEED, STEPS, row, position),
    });
    return completions.map(({ tokens }, i) => {
      const answer = tokenizer.decode(tokens).match(/<answer>(.*?)<\/answer>/)?.[1];
      return Number(answer) === sums[Math.floor(i / count)].reduce((a, b) => a + b, 0);
    });
  };
  const percent = (hits: boolean[]) => `${((100 * hits.filter(Boolean).length) / hits.length).toFixed(1)} %`;
  const greedy = await right(0, 1);
  const sampled = await right(1, 8);
  const any = sums.map((_, i) => sampled.slice(8 * i, 8 * (i + 1)).some(Boolean));
  return `pass@1 greedy ${percent(greedy)}, pass@1 sampled ${percent(sampled)}, pass@8 ${percent(any)}`;
}

async function save(params: Params): Promise<void> {
  const tensors = Object.entries(params).map(([name, param]) => ({
    name,
    dtype: 'F32' as const,
    shape: param.shape,
    data: async () => (await param.data()) as Float32Array,
  }));
  await writeSafetensors(join(FOLDER, 'model.safetensors'), tensors, { format: 'pt' });
}

async function main(): Promise<void> {
  console.log(`backend: ${await initBackend('auto')}`);
  mkdirSync(FOLDER, { recursive: true });
  writeFileSync(join(FOLDER, 'config.json'), `${JSON.stringify(CONFIG, null, 2)}\n`);
  const generation = { eos_token_id: TOKEN_IDS.eos, pad_token_id: TOKEN_IDS.pad };
  writeFileSync(join(FOLDER, 'generation_config.json'), `${JSON.stringify(generation, null, 2)}\n`);
  writeTokenizer(FOLDER);
  const tokenizer = await loadTokenizer(FOLDER);
  const config = await readConfig(FOLDER);
  const { test } = taskSums();
  const heldOut = new Set(test.map(sumText));

  let params: Params = Object.fromEntries(
    Object.entries(parameterShapes(config)).map(([name, shape], i) => {
      if (shape.length === 1) return [name, tf.ones(shape)];
      const values = normals(shape[0] * shape[1], SEED, i);
      return [name, tf.tidy(() => tf.mul(tf.tensor(values, shape), CONFIG.initializer_range))];
    }),
  );
  let state = createAdamW(params);
  const began = performance.now();
  for (let step = 0; step < STEPS; step++) {
    const batch: Homework[] = [];
    for (let row = 0; batch.length < ROWS; row++) {
      let draw = 0;
      const random = () => uniform(SEED, step, row, draw++);
      const terms = drawSum(random);
      if (!heldOut.has(sumText(terms))) batch.push(demonstration(tokenizer, terms, random));
    }
    const count = batch.reduce((sum, { answer }) => sum + answer, 0);
    const parts = microBatches(batch, MICRO_BATCH_TOKENS);
    const result = accumulateGradients(
      { config, params },
      parts.map((part) => (model) => loss(model, part, count)),
    );
    const { gradients, norm } = clipByGlobalNorm(result.gradients, 1);
    const learningRate = LEARNING_RATE * scheduleFactor('cosine', step + 1, { warmup: WARMUP, total: STEPS });
    ({ params, state } = adamW(params, gradients, state, { learningRate, weightDecay: 0.1, beta2: 0.99 }));
    if (step % 50 === 0 || step === STEPS - 1) {
      const minutes = (performance.now() - began) / 60_000;
      console.log(
        `step ${step + 1}/${STEPS}  loss ${(await result.loss.data())[0].toFixed(4)}  ${minutes.toFixed(1)} min`,
      );
    }
    tf.dispose([gradients, result.gradients, norm, result.loss]);
    if ((step + 1) % 500 === 0 || step === STEPS - 1) {
      console.log(await evaluate({ config, params }, tokenizer, test.slice(0, 100)));
      await save(params);
    }
  }
}

await main();
