/** AdamW, and the clipping of gradients by their global norm: a factor, which AdamW puts before each of them. */
import * as tf from '@tensorflow/tfjs';
import type { Params } from '../model/model.ts';
import { adamWUpdate } from '../ops/adamw/adamw.ts';
import { sumOfSquares } from '../ops/sum_of_squares/sum_of_squares.ts';

/** First and second moment of each parameter's gradient, by name, and the number of updates made. */
export type AdamWState = { step: number; m: Params; v: Params };

export type AdamWOptions = {
  learningRate: number;
  weightDecay: number;
  /** What each gradient is multiplied by first: {@link clippingFactor}. */
  gradientScale?: number;
  beta1?: number;
  beta2?: number;
  epsilon?: number;
};

/** @returns moments of zero for every parameter */
export function createAdamW(params: Params): AdamWState {
  const zeros = () => mapParams(params, (param) => tf.zerosLike(param));
  return { step: 0, m: zeros(), v: zeros() };
}

/**
 * One update (Loshchilov & Hutter 2019, algorithm 2, as PyTorch computes it): decay is decoupled from the gradient,
 * and norms (parameters of one dimension) do not decay.
 * Disposes of the old parameters and moments, each as soon as it is replaced, so that little more than one copy exists.
 * @returns the new parameters and state
 */
export function adamW(
  params: Params,
  gradients: Params,
  state: AdamWState,
  { learningRate, weightDecay, gradientScale = 1, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 }: AdamWOptions,
): { params: Params; state: AdamWState } {
  const step = state.step + 1;
  const next: { params: Params; m: Params; v: Params } = { params: {}, m: {}, v: {} };
  for (const [name, gradient] of Object.entries(gradients)) {
    const old = [params[name], state.m[name], state.v[name]];
    const [param, m, v] = old;
    [next.params[name], next.m[name], next.v[name]] = tf.tidy(() =>
      adamWUpdate([param, gradient, m, v], {
        ...{ gradientScale, beta1, beta2, epsilon },
        decay: param.rank > 1 ? 1 - learningRate * weightDecay : 1,
        stepSize: learningRate / (1 - beta1 ** step),
        rootOfCorrection: Math.sqrt(1 - beta2 ** step),
      }),
    );
    tf.dispose(old);
  }
  return { params: next.params, state: { step, m: next.m, v: next.v } };
}

/** @returns the norm of all gradients together, shape () */
export const globalNorm = (gradients: Params): tf.Scalar =>
  tf.tidy(() => tf.sqrt(sumOfSquares(Object.values(gradients))));

/**
 * What scales gradients down so that their norm, taken over all of them together, is at most `maxNorm` (Pascanu et al. 2013;
 * the ε is PyTorch's, and so is float32).
 * @param maxNorm - 0 does not clip
 */
export function clippingFactor(norm: number, maxNorm: number): number {
  const [most, actual] = [maxNorm, norm + Math.fround(1e-6)].map(Math.fround);
  return maxNorm > 0 ? Math.min(1, Math.fround(most / actual)) : 1;
}

const mapParams = (params: Params, map: (param: tf.Tensor, name: string) => tf.Tensor): Params =>
  Object.fromEntries(Object.entries(params).map(([name, param]) => [name, map(param, name)]));
