/** For the tests of this folder: a policy with random weights, and what it is asked. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import {
  createCommand,
  type Draw,
  type Experience,
  type Options,
  rollout,
  toExperience,
} from '../experiment_base/train.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { parseOptions } from '../lib/cli/options.ts';
import type { Problem } from '../lib/environments/dataset.ts';
import { type LlamaConfig, parameterShapes } from '../lib/model/config.ts';
import type { Model } from '../lib/model/model.ts';
import { normals, uniform } from '../lib/random.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from '../models/tiny/tokenizer.ts';
import { useBackend } from './backend.ts';

export { distance } from './distance.ts';

export const optionsOf = (...flags: string[]): Options => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
export const SMALL = '--num-generations 4 --max-new-tokens 12 --warmup-steps 0 --max-grad-norm 0'.split(' ');
export const PROBLEMS: Problem[] = [
  { question: '1+2', answer: '3', source: '', columns: {} },
  { question: '40+25-3', answer: '62', source: '', columns: {} },
];

/** A Llama with random weights that often says <answer>, </answer> and the end of text, so that rewards differ. */
function randomModel(): Model {
  const config: LlamaConfig = {
    ...{ vocabSize: VOCABULARY_SIZE, hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4, numKvHeads: 2 },
    ...{ headDim: 8, rmsNormEps: 1e-5, ropeTheta: 10_000, ropeScaling: null, maxPositionEmbeddings: 64 },
    ...{
      head: 'logits' as const,
      tieWordEmbeddings: false,
      bosTokenId: null,
      eosTokenIds: [TOKEN_IDS.eos],
      torchDtype: 'float32',
    },
    ...{ biases: { qkv: false, o: false, mlp: false }, qkNorm: false },
  };
  const params = Object.entries(parameterShapes(config)).map(([name, shape], i) => {
    if (shape.length === 1) return [name, tf.ones(shape)];
    const values = normals(shape[0] * shape[1], 0, i).map((value) => 0.2 * value);
    // Column 0 is a constant input, and the LM head's column 0 thereby a bias.
    const biases: Record<number, number> = { [TOKEN_IDS.eos]: 1.6, 7: 2.5, 8: 2.5 };
    for (let row = 0; row < shape[0]; row++) {
      if (name === 'model.embed_tokens.weight') values[row * shape[1]] = 1;
      if (name === 'lm_head.weight') values[row * shape[1]] = biases[row] ?? 0;
    }
    return [name, tf.tensor(values, shape)];
  });
  return { config, params: Object.fromEntries(params) };
}

await useBackend();
export const model = randomModel();
const folder = mkdtempSync(join(tmpdir(), 'grpo-'));
writeTokenizer(folder);
export const tokenizer = await loadTokenizer(folder);
rmSync(folder, { recursive: true });

export const newState = () => createTrainingState(model, { tokens: 0, skipped: 0, skippedInARow: 0 });
/** The random numbers of a step. */
export const drawsOf =
  ({ seed }: Options, step: number): Draw =>
  (...token) =>
    uniform(seed, step, ...token);
export const sample = (options: Options, step = 1, problems = PROBLEMS, policy = model) =>
  rollout(policy, tokenizer, problems, drawsOf(options, step), options);
/** Rollouts with their advantages. */
export const experience = async (options: Options) => toExperience(await sample(options), undefined, options);

/** Experience whose advantages differ, and whose π_old and reference are somewhat off the policy. */
export async function offPolicy(options: Options): Promise<Experience[]> {
  const rollouts = await sample(options);
  return rollouts.map((row, i) => ({
    ...row,
    advantage: [1.5, -0.5, -1.2, 0.2, 0.9, -0.7, 0.4, -0.6][i],
    oldLogProbs: row.oldLogProbs.map((logProb, t) => logProb + 0.1 * Math.sin(i + t)),
    ...(options.klCoef > 0 && {
      refLogProbs: row.oldLogProbs.map((logProb, t) => logProb + 0.3 * Math.cos(i * t)),
    }),
  }));
}
