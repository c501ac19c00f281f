/** AdamW, and the clipping of gradients by their global norm. */
import * as tf from '@tensorflow/tfjs';
import type { Params } from '../model/model.ts';
import { adamWUpdate } from '../ops/adamw/adamw.ts';
import { sumOfSquares } from '../ops/sum_of_squares/sum_of_squares.ts';

/** First and second moment of each parameter's gradient, by name, and the number of updates made. */
export type AdamWState = { step: number; m: Params; v: Params };

export type AdamWOptions = {
  learningRate: number;
  weightDecay: number;
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
  { learningRate, weightDecay, beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8 }: AdamWOptions,
): { params: Params; state: AdamWState } {
  const step = state.step + 1;
  const next: { params: Params; m: Params; v: Params } = { params: {}, m: {}, v: {} };
  for (const [name, gradient] of Object.entries(gradients)) {
    const old = [params[name], state.m[name], state.v[name]];
    const [param, m, v] = old;
    [next.params[name], next.m[name], next.v[name]] = tf.tidy(() =>
      adamWUpdate([param, gradient, m, v], {
        beta1,
        beta2,
        epsilon,
        decay: param.rank > 1 ? 1 - learningRate * weightDecay : 1,
        stepSize: learningRate / (1 - beta1 ** step),
        rootOfCorrection: Math.sqrt(1 - beta2 ** step),
      }),
    );
    tf.dispose(old);
  }
  return { params: next.params, state: { step, m: next.m, v: next.v } };
}

/**
 * Scales all gradients down so that their norm, taken over all of them together, is at most `maxNorm`
 * (Pascanu et al. 2013; the ε is PyTorch's).
 * @param maxNorm - 0 does not clip
 * @returns the clipped gradients and the norm before clipping, shape ()
 */
export function clipByGlobalNorm(gradients: Params, maxNorm: number): { gradients: Params; norm: tf.Scalar } {
  return tf.tidy(() => {
    const squares = Object.values(gradients).map(sumOfSquares);
    const norm = tf.sqrt(tf.sum(tf.stack(squares))) as tf.Scalar;
    const scale = maxNorm > 0 ? tf.minimum(1, tf.div(maxNorm, tf.add(norm, 1e-6))) : tf.scalar(1);
    return { gradients: mapParams(gradients, (gradient) => tf.mul(gradient, scale)), norm };
  });
}

const mapParams = (params: Params, map: (param: tf.Tensor, name: string) => tf.Tensor): Params =>
  Object.fromEntries(Object.entries(params).map(([name, param]) => [name, map(param, name)]));
