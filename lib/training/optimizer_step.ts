/** One step of the optimizer, or none if the numbers are not numbers. */
import * as tf from '@tensorflow/tfjs';
import { type Params, trainable, withTrainable } from '../model/llama.ts';
import { UserError } from '../run/errors.ts';
import type { TrainingState } from '../run/training_state.ts';
import { type AdamWOptions, adamW, clipByGlobalNorm } from './adamw.ts';

const MAX_SKIPPED = 10;

/**
 * Clips the gradient by its global norm and lets AdamW change the policy. A loss or gradient that is not finite changes
 * nothing and is counted (`skipped`, `skippedInARow`). Disposes of the gradient.
 * @param gradient - from `accumulateGradients`
 * @returns the loss, the gradient's norm before clipping, and whether both are finite
 * @throws {UserError} after ten updates in a row that were not finite
 */
export async function optimizerStep(
  state: TrainingState,
  gradient: { loss: tf.Scalar; gradients: Params },
  options: AdamWOptions & { maxGradNorm: number },
): Promise<{ loss: number; norm: number; finite: boolean }> {
  const clipped = clipByGlobalNorm(gradient.gradients, options.maxGradNorm);
  const [loss, norm] = [(await gradient.loss.data())[0], (await clipped.norm.data())[0]];
  const finite = Number.isFinite(loss) && Number.isFinite(norm);
  if (finite) {
    const { params, state: optimizer } = adamW(trainable(state.model), clipped.gradients, state.optimizer, options);
    state.model = withTrainable(state.model, params);
    state.optimizer = optimizer;
  }
  tf.dispose([gradient.loss, gradient.gradients, clipped.gradients, clipped.norm]);
  const { skipped = 0, skippedInARow = 0 } = state.counters;
  Object.assign(
    state.counters,
    finite ? { skippedInARow: 0 } : { skipped: skipped + 1, skippedInARow: skippedInARow + 1 },
  );
  if (state.counters.skippedInARow < MAX_SKIPPED) return { loss, norm, finite };
  throw new UserError(
    `the loss or its gradient was not finite in ${MAX_SKIPPED} updates in a row: --resume an earlier checkpoint with a lower --learning-rate (now ${options.learningRate}) or --max-grad-norm`,
  );
}
