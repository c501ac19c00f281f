/** For tests of the forward pass and its gradient. */
import * as tf from '@tensorflow/tfjs';
import { expect } from 'vitest';
import type { Model, Params } from '../lib/model/model.ts';
import { completionLogProbs, padRows, type Sequence } from '../lib/training/log_probs.ts';

export const fixtures = 'lib/model/fixtures';

/** The largest |a − b|. */
export const worst = (actual: ArrayLike<number>, expected: ArrayLike<number>): number => {
  expect(actual.length).toBe(expected.length);
  return Math.max(...Array.from(expected, (x, i) => Math.abs(actual[i] - x)));
};

/** Σ weight · (−log π), the weights given for every completion token. */
export const weightedNll = (sequences: Sequence[], weights: number[][]) => (model: Model) => {
  const { logProbs } = completionLogProbs(model, sequences, 1);
  return tf.neg(tf.sum(tf.mul(logProbs, padRows(weights, logProbs.shape[1])))) as tf.Scalar;
};

/** ‖g − reference‖ / ‖reference‖ of each parameter, the largest of them. */
export async function worstGradient(gradients: Params, expected: (name: string) => Promise<ArrayLike<number>>) {
  const norm = (values: number[]) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  const errors = await Promise.all(
    Object.entries(gradients).map(async ([name, gradient]) => {
      const [actual, values] = [await gradient.data(), Array.from(await expected(name))];
      expect(actual.length).toBe(values.length);
      return norm(values.map((x, i) => actual[i] - x)) / norm(values);
    }),
  );
  return Math.max(...errors);
}
