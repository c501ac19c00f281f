/** Whether a GPU does faster what a run does, and finds the same: tried out with the run's own model. */
import { setTimeout as sleep } from 'node:timers/promises';
import * as tf from '@tensorflow/tfjs';
import type { Gpu } from '../backend/gpus.ts';
import { type BackendOptions, becomeWasm, becomeWebGpu } from '../backend/index.ts';
import { flatten, unflatten } from '../distributed/flatten.ts';
import { generate } from '../generation/generate.ts';
import { disposeModel, type Model } from '../model/model.ts';
import { sizeOf } from '../ops/shapes.ts';
import { sumOfSquares } from '../ops/sum_of_squares/sum_of_squares.ts';
import { normals, uniform } from '../random.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { completionLogProbs } from '../training/log_probs.ts';

/** With fewer parameters a processor is done before a GPU has been told what to do. */
const LARGE = 50e6;
/** How many times as fast a GPU must be: the trial is short. */
const FASTER = 1.5;
/** How far log-probs may be apart (nats), and norms of gradients (as parts of themselves, or of what is small beside the largest). */
const [TOLERANCE, SMALL] = [0.01, 1e-3];
/** Seconds after which a GPU is given up, and how many times as long as the processor took. */
const PATIENCE = { seconds: 60, times: 5 };

type Options = Pick<BackendOptions, 'kernels'> & { large?: number; faster?: number; patience?: typeof PATIENCE };

/**
 * Goes from wasm to webgpu if the GPU does a short piece of a run with this model faster, and to the same result: no driver is
 * trusted untried. Else all stays as it was.
 * @param model - as it is trained, with its adapter if it has one
 * @param gpu - finds one; not called for a model that is not `large`
 * @param backend - what is current, in words
 * @returns what is current then, in words, with what was found; undefined if nothing was tried
 */
export async function takeFasterGpu(
  model: Model,
  gpu: () => Promise<Gpu | undefined>,
  backend: string,
  { kernels, large = LARGE, faster = FASTER, patience = PATIENCE }: Options = {},
): Promise<string | undefined> {
  const parameters = Object.values(model.params).reduce((sum, { shape }) => sum + sizeOf(shape), 0);
  const found = parameters >= large && tf.getBackend() === 'wasm' ? await gpu() : undefined;
  if (!found) return undefined;
  console.log(`trying ${found.name} with this model`);
  const tried = withDrawnAdapter(model);
  let copy: Model | undefined;
  let refused: string;
  try {
    const here = await secondTrial(tried);
    const { params, lora } = tried;
    // As numbers: the tensors themselves would move to the GPU for good.
    const [values, adapter] = [await flatten(params), await flatten(lora?.params ?? {})];
    const taken = await becomeWebGpu(found, { kernels });
    copy = { ...tried, params: unflatten(values, params) };
    if (lora) copy.lora = { ...lora, params: unflatten(adapter, lora.params) };
    const there = await within(patience.seconds + patience.times * here.seconds, secondTrial(copy));
    const times = `a trial took ${there.seconds.toPrecision(2)} s there, ${here.seconds.toPrecision(2)} s on the processor`;
    const isSame = difference(here, there) < TOLERANCE;
    if (isSame && here.seconds > faster * there.seconds) return `${taken}; ${times}`;
    refused = isSame ? times : 'it does not find what the processor finds';
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    [refused] = error.message.split('\n'); // whatever it was, the processor can do without
  } finally {
    if (copy) disposeModel(copy);
    if (tried !== model) tf.dispose(tried.lora?.params);
  }
  await becomeWasm(backend);
  return `${backend}; not on ${found.name}: ${refused}`;
}

/** The same model; an adapter that has learnt nothing yet (B = 0) would hide whatever is wrong with the gradients of A. */
function withDrawnAdapter(model: Model): Model {
  const { lora } = model;
  if (!lora) return model;
  const draw = ({ size, shape }: tf.Tensor, i: number) => {
    const values = normals(size, 0, i).map((x) => 0.02 * x);
    return tf.tensor(values, shape);
  };
  const params = Object.entries(lora.params).map(([name, param], i) => {
    return [name, name.endsWith('.lora_B.weight') ? draw(param, i) : tf.clone(param)] as const;
  });
  return { ...model, lora: { ...lora, params: Object.fromEntries(params) } };
}

/** @throws {Error} if it takes longer */
async function within<T>(seconds: number, work: Promise<T>): Promise<T> {
  const timer = new AbortController();
  const late = sleep(1000 * seconds, undefined, { signal: timer.signal }).then(() => {
    throw new Error(`it gave no answer within ${seconds.toFixed(0)} s`);
  });
  for (const either of [work, late]) either.catch(() => {}); // only the first one is heard
  try {
    return await Promise.race([work, late]);
  } finally {
    timer.abort();
  }
}

/** Log-probs of tokens and of the most probable continuations, with their tokens, and the norm of each gradient. */
type Trial = { seconds: number; tokens: number[][]; logProbs: number[][]; norms: ArrayLike<number> };

/** The first one makes what is made once: memory, threads, pipelines. */
async function secondTrial(model: Model): Promise<Trial> {
  await trial(model);
  return trial(model);
}

async function trial(model: Model): Promise<Trial> {
  const began = performance.now();
  const token = (...key: number[]) => Math.floor(model.config.vocabSize * uniform(0, ...key));
  const list = (length: number, ...key: number[]) => Array.from({ length }, (_, t) => token(...key, t));
  const prompts = [list(16, 0), list(8, 1)];
  const sampling = { temperature: 0, topK: 0, topP: 1, maxNewTokens: 8, eosTokenIds: [], random: () => 0 };
  const sampled = await generate(model, prompts, 4, sampling);
  const sequences = prompts.flatMap((prompt, p) => [0, 1].map((i) => ({ prompt, completion: list(16, p, i, 2) })));
  const loss = (model: Model) => tf.mean(completionLogProbs(model, sequences, 1).logProbs) as tf.Scalar;
  const result = await accumulateGradients(model, [loss]);
  const squares = tf.tidy(() => tf.stack(Object.values(result.gradients).map((gradient) => sumOfSquares([gradient]))));
  const norms = Array.from(await squares.data(), Math.sqrt);
  tf.dispose([squares, result.loss, result.gradients]);
  return {
    seconds: (performance.now() - began) / 1000,
    tokens: sampled.map(({ tokens }) => tokens),
    logProbs: sampled.map(({ logProbs }) => logProbs),
    norms,
  };
}

/** The largest difference; NaN if anything is not a number. Continuations count as far as they are the same. */
function difference(a: Trial, b: Trial): number {
  const largest = Math.max(...Array.from(a.norms));
  const ofNorms = Array.from(a.norms, (norm, i) => Math.abs(norm - b.norms[i]) / (norm + SMALL * largest));
  const ofLogProbs = a.logProbs.flatMap((own, r) => {
    const other = a.tokens[r].findIndex((token, t) => token !== b.tokens[r][t]);
    const same = own.slice(0, other === -1 ? own.length : other + 1);
    return same.map((logProb, t) => Math.abs(logProb - b.logProbs[r][t]));
  });
  return Math.max(...ofNorms, ...ofLogProbs);
}
