/** What a run's options ask of the model and of this machine, estimated before anything large is loaded. */
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { machineMemory } from '../machine.ts';
import { type LlamaConfig, parameterShapes } from '../model/config.ts';

/** The options that say how much a step computes and holds. */
export type SizeOptions = {
  batchSize: number;
  numGenerations: number;
  numIterations: number;
  miniBatchSize: number;
  gradientAccumulationSteps: number;
  maxNewTokens: number;
  maxSteps: number;
  warmupSteps: number;
  topK: number;
  loraRank?: number;
  /** of a held-out problem, which are sampled together */
  evalSamples?: number;
};

/** Completions of a step: more than any published run has. */
const MAX_COMPLETIONS = 2 ** 16;

/** Completions are seldom all as long as they may be: what would not fit at a quarter of that length is refused. */
const SHARE_OF_LENGTH = 1 / 4;

/** All that WebAssembly can address. */
const WASM_MEMORY = 2 ** 32;

/**
 * Checks the completions of a step.
 * @throws {UserError} if there are too many for any model and machine, or if they do not divide into updates
 */
export function checkCompletions({ batchSize: P, numGenerations: G, ...options }: SizeOptions): void {
  const completions = P * G;
  if (completions > MAX_COMPLETIONS) {
    throw new UserError(
      `--batch-size ${P} × --num-generations ${G} are ${completions} completions a step, of at most ${MAX_COMPLETIONS}: lower one of them`,
    );
  }
  const perUpdate = (options.miniBatchSize || completions) * options.gradientAccumulationSteps;
  if (completions % perUpdate === 0) return;
  throw new UserError(
    `the ${completions} completions of a step (--batch-size ${P} × --num-generations ${G}) must divide into updates of ${perUpdate} (--mini-batch-size × --gradient-accumulation-steps): choose sizes that do`,
  );
}

/**
 * Refuses options that the model cannot follow, or for which there is not enough memory, whatever happens.
 * @param memory - bytes that tensors can have
 * @returns notes for the user: options that will not do what they seem to
 * @throws {UserError} naming the options to change
 */
export function checkSize(config: LlamaConfig, options: SizeOptions, memory = memoryForTensors()): string[] {
  const { maxNewTokens, topK, loraRank = 0 } = options;
  const { maxPositionEmbeddings: context, vocabSize, hiddenSize } = config;
  const limits: [option: string, value: number, max: number, why: string][] = [
    ['--max-new-tokens', maxNewTokens, context - 1, `the model's context is ${context} tokens, the prompt included`],
    ['--top-k', topK, vocabSize, `the model knows ${vocabSize} tokens; 0 samples from all`],
    [
      '--lora-rank',
      loraRank,
      hiddenSize,
      `no change of the model's matrices has a rank above ${hiddenSize}, their size`,
    ],
  ];
  const exceeded = limits.find(([, value, max]) => value > max);
  if (exceeded) throw new UserError(`${exceeded[0]} ${exceeded[1]} is too much: ${exceeded[3]}`);

  const state = bytesOfState(config, loraRank);
  if (state > memory) {
    const advice =
      loraRank > 0 ? 'lower --lora-rank, or take a smaller model' : 'pass --lora-rank to train an adapter only';
    const elsewhere = tf.getBackend() === 'wasm' ? ', or, with a GPU that has more, --backend webgpu' : '';
    throw new UserError(
      `the model and what its training keeps take ${gigabytes(state)}, and there are ${gigabytes(memory)} for tensors: ${advice}${elsewhere}`,
    );
  }
  const cache = bytesOfCache(config, options);
  if (cache * SHARE_OF_LENGTH > memory) {
    throw new UserError(
      `the keys and values of --batch-size ${options.batchSize} × --num-generations ${options.numGenerations} completions (or --eval-samples) of --max-new-tokens ${maxNewTokens} take ${gigabytes(cache)}, and there are ${gigabytes(memory)} for tensors: lower one of them`,
    );
  }
  return notesOn(options);
}

/** Float32: what is trained has a gradient and two moments beside it. */
function bytesOfState(config: LlamaConfig, loraRank: number): number {
  const shapes = Object.entries(parameterShapes(config));
  const size = (shape: number[]) => shape.reduce((a, b) => a * b, 1);
  const whole = shapes.reduce((sum, [, shape]) => sum + size(shape), 0);
  const adapter = shapes
    .filter(([name]) => name.endsWith('_proj.weight'))
    .reduce((sum, [, [out, into]]) => sum + loraRank * (out + into), 0);
  return 4 * (loraRank > 0 ? whole + 4 * adapter : 4 * whole);
}

/** Keys and values of what is sampled together, should all be as long as it may be. */
function bytesOfCache(config: LlamaConfig, { batchSize, numGenerations, evalSamples = 0, ...options }: SizeOptions) {
  const { numLayers, numKvHeads, headDim } = config;
  const rows = Math.max(batchSize * numGenerations, evalSamples);
  return 4 * rows * options.maxNewTokens * 2 * numLayers * numKvHeads * headDim;
}

function notesOn({ batchSize, numGenerations, ...options }: SizeOptions): string[] {
  const rows = batchSize * numGenerations;
  const perUpdate = (options.miniBatchSize || rows) * options.gradientAccumulationSteps;
  const updates = options.maxSteps * options.numIterations * (rows / perUpdate);
  if (options.warmupSteps <= updates) return [];
  return [
    `--warmup-steps ${options.warmupSteps} is longer than the run, which has ${updates} ${updates === 1 ? 'update' : 'updates'}: the learning rate never gets as high as --learning-rate`,
  ];
}

/** A GPU does not say how much memory it has: there, nothing is refused. */
function memoryForTensors(): number {
  const machine = machineMemory();
  if (tf.getBackend() === 'wasm') return Math.min(machine, WASM_MEMORY);
  return tf.getBackend() === 'cpu' ? machine : Number.POSITIVE_INFINITY;
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toPrecision(3)} GB`;
