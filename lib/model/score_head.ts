/** From a language model to one that scores texts, as a reward model starts. */
import * as tf from '@tensorflow/tfjs';
import { normals } from '../random.ts';
import type { Model } from './model.ts';

/**
 * The same model with a score on top in place of its logits, drawn from N(0, 1 / (H + 1)) (Stiennon et al. 2020, "Learning
 * to summarize from human feedback", appendix B.1).
 * @returns a model of its own: its parameters are copies
 */
export function withScoreHead({ config, params }: Model, seed: number): Model {
  const { 'lm_head.weight': _, ...body } = params;
  const std = 1 / Math.sqrt(config.hiddenSize + 1);
  const score = normals(config.hiddenSize, seed).map((x) => x * std);
  const copies = Object.entries(body).map(([name, param]) => [name, tf.clone(param)] as const);
  return {
    config: { ...config, head: 'score' },
    params: { ...Object.fromEntries(copies), 'score.weight': tf.tensor2d(score, [1, config.hiddenSize]) },
  };
}
