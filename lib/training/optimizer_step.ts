/** One step of the optimizer, which is skipped if the loss or the gradient is not finite. */
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { type Params, trainable, withTrainable } from '../model/model.ts';
import type { TrainingState } from '../training/state.ts';
import { type AdamWOptions, adamW, clippingFactor, globalNorm } from './adamw.ts';

const MAX_SKIPPED = 10;

/**
 * Clips the gradient by its global norm and lets AdamW change the policy. A loss or gradient that is not finite changes
 * nothing and is counted (`skipped`, `skippedInARow`), and `state.notes` says why. Disposes of the gradient.
 * @param gradient - from `accumulateGradients`
 * @returns the loss, the gradient's norm before clipping, and whether both are finite
 * @throws {UserError} after ten such updates, with none between them that had a gradient and was made
 */
export async function optimizerStep(
  state: TrainingState,
  gradient: { loss: tf.Scalar; gradients: Params },
  options: Omit<AdamWOptions, 'gradientScale'> & { maxGradNorm: number },
): Promise<{ loss: number; norm: number; finite: boolean }> {
  const normBefore = globalNorm(gradient.gradients);
  const [[loss], [norm]] = await Promise.all([gradient.loss.data(), normBefore.data()]); // read together
  const finite = Number.isFinite(loss) && Number.isFinite(norm);
  if (finite) {
    const { params, state: optimizer } = adamW(trainable(state.model), gradient.gradients, state.optimizer, {
      ...options,
      gradientScale: clippingFactor(norm, options.maxGradNorm),
    });
    state.model = withTrainable(state.model, params);
    state.optimizer = optimizer;
  }
  tf.dispose([gradient.loss, gradient.gradients, normBefore]);
  if (finite && norm > 0) state.counters.skippedInARow = 0;
  if (!finite) skip(state, causeOf(loss, norm), options);
  return { loss, norm, finite };
}

/** Why an update was skipped. Rewards and the sampler's log-probs are finite: they were checked before. */
const causeOf = (loss: number, norm: number): string =>
  Number.isFinite(loss)
    ? `the gradient overflows, its norm is ${norm}`
    : `the loss is ${loss}: log-probs of the policy are not finite, or too far from those it sampled with`;

function skip(state: TrainingState, cause: string, { learningRate }: AdamWOptions): void {
  const { skipped = 0, skippedInARow = 0 } = state.counters;
  Object.assign(state.counters, { skipped: skipped + 1, skippedInARow: skippedInARow + 1 });
  if (skippedInARow + 1 >= MAX_SKIPPED) {
    throw new UserError(
      `${MAX_SKIPPED} updates were skipped and none made between them, the last because ${cause}: --resume an earlier checkpoint with a lower --learning-rate (now ${learningRate}) or --max-grad-norm`,
    );
  }
  state.notes = [...(state.notes ?? []), `an update was skipped: ${cause}`];
}
