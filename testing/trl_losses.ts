/** For tests: losses that TRL 1.13 computes from random numbers, and a loss of ours beside them. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { expect } from 'vitest';
import type { LossInputs } from '../experiment_base/train.ts';
import { distance } from './distance.ts';

export type TrlCase = {
  loss_type: 'grpo' | 'bnpo' | 'dr_grpo' | 'dapo' | 'cispo';
  importance_sampling_level: 'token' | 'sequence';
  beta: number;
  epsilon_low: number;
  epsilon_high: number;
  max_completion_length: number;
  advantages: number[];
  loss: number;
  metrics: Record<string, number>;
} & Record<'log_probs' | 'old_log_probs' | 'log_probs_ref' | 'completion_mask' | 'grad_log_probs', number[][]>;

const FILE = join(import.meta.dirname, '../../shared/oracles/grpo/trl_loss.json');
export const absent = existsSync(FILE) ? '' : ' (skipped: there is no ../shared/oracles)';

/** The cases of these kinds, each with its name; none where the file is not there. */
export function trlCases(wanted: (c: TrlCase) => boolean): [string, TrlCase][] {
  if (absent) return [];
  const { cases }: { cases: TrlCase[] } = JSON.parse(readFileSync(FILE, 'utf8'));
  return cases.filter(wanted).map((c, i) => {
    return [`${i}: ${c.loss_type}, ${c.importance_sampling_level}, β ${c.beta}, ε ${c.epsilon_high}`, c];
  });
}

export const tokensOf = ({ completion_mask }: TrlCase): number => completion_mask.flat().filter(Boolean).length;

/** Checks value and gradient of a loss of ours. @param advantages - in place of the case's own */
export function expectTrlLoss(
  c: TrlCase,
  loss: (inputs: LossInputs) => tf.Scalar,
  advantages = c.advantages,
): LossInputs {
  const rows = (values: number[][]) => tf.tensor2d(values);
  const logProbs = rows(c.log_probs);
  const inputs: LossInputs = {
    logProbs,
    oldLogProbs: rows(c.old_log_probs),
    refLogProbs: c.beta > 0 ? rows(c.log_probs_ref) : undefined,
    advantages: rows(advantages.map((a) => [a])),
    mask: rows(c.completion_mask),
  };
  const { value, grad } = tf.valueAndGrad((x) => loss({ ...inputs, logProbs: x as tf.Tensor2D }))(logProbs);
  expect(Math.abs(value.dataSync()[0] - c.loss)).toBeLessThan(1e-5);
  expect(distance(grad.dataSync(), c.grad_log_probs.flat())).toBeLessThan(1e-5);
  return inputs;
}

/** A small batch: three completions of 1 to 3 tokens, off-policy by about 0.3. @param width - tokens of the longest */
export function smallBatch(width = 4): LossInputs {
  const grid = (of: (row: number, t: number) => number) =>
    tf.tensor2d(Array.from({ length: 3 }, (_, row) => Array.from({ length: width }, (_, t) => of(row, t))));
  return {
    logProbs: grid((row, t) => -1 - Math.abs(Math.sin(3 * row + t))),
    oldLogProbs: grid((row, t) => -1 - Math.abs(Math.sin(3 * row + t)) + 0.3 * Math.cos(5 * row + 2 * t)),
    refLogProbs: grid((row, t) => -1.5 - 0.1 * row * t),
    advantages: tf.tensor2d([[1.2], [-0.7], [-0.5]]),
    mask: grid((row, t) => Number(t <= row || width === 1)),
  };
}

/** Value and gradient with respect to the log-probabilities. */
export function valueAndGradient(loss: (inputs: LossInputs) => tf.Scalar, inputs: LossInputs): [number, number[]] {
  const lossOf = (x: tf.Tensor) => loss({ ...inputs, logProbs: x as tf.Tensor2D });
  const { value, grad } = tf.valueAndGrad(lossOf)(inputs.logProbs);
  return [value.dataSync()[0], Array.from(grad.dataSync())];
}
