/** What tokens weigh in a loss. */
import * as tf from '@tensorflow/tfjs';
import { padRows } from '../lib/training/log_probs.ts';

/**
 * −∂L/∂log π of each token of some completions, before the first update: how hard the loss pushes it.
 * @param logProbs - of each completion its tokens' log-probs when they were sampled; lengths may differ
 * @param loss - L of the log-probs π, shape (B, T), padded to the longest
 * @returns a weight for each token
 */
export async function tokenWeights(
  logProbs: number[][],
  loss: (logProbs: tf.Tensor2D) => tf.Scalar,
): Promise<number[][]> {
  const longest = Math.max(...logProbs.map(({ length }) => length));
  const gradient = tf.tidy(() => tf.grad((x) => loss(x as tf.Tensor2D))(padRows(logProbs, longest)) as tf.Tensor2D);
  const values = await gradient.array();
  gradient.dispose();
  return logProbs.map(({ length }, i) => values[i].slice(0, length).map((value) => -value));
}
