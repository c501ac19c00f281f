/** A layer of a decoder at one token of each row, as sampling runs it again and again. */
import type * as tf from '@tensorflow/tfjs';
import { kernelOf } from '../fusible.ts';

const REQUIRED = [
  ...(['x', 'cos', 'sin', 'inputNorm', 'q', 'k', 'v', 'o', 'outputNorm', 'gate', 'up', 'down'] as const),
  ...(['pastK', 'pastV'] as const),
];
const OPTIONAL = [
  ...(['prefixK', 'prefixV', 'qNorm', 'kNorm'] as const),
  ...(['qBias', 'kBias', 'vBias', 'oBias', 'gateBias', 'upBias', 'downBias'] as const),
];

/**
 * - `x`: the residual stream, shape (N, H), which is written over
 * - `cos`, `sin`: shape (N, 1, D/2)
 * - weights, shape (out, in), biases, all or none of q, k and v, and of gate and up, and norms; `qNorm` and `kNorm` are those of each head
 * - `pastK`, `pastV`: the rows' own keys and values, shape (kv heads · slots, S, D), of which the first `length` are filled
 * - `prefixK`, `prefixV`: those of the prompts, shape (kv heads · P, tokens, D)
 */
export type LayerTensors<Tensor> = Record<(typeof REQUIRED)[number], Tensor> &
  Partial<Record<(typeof OPTIONAL)[number], Tensor | undefined>>;

export type LayerOptions = {
  epsilon: number;
  /** Tokens that the past holds, and those that there will be room for: see `append`. */
  length: number;
  room: number;
  /** The slot of each row, and how many there are for each prompt. */
  slots: number[];
  group: number;
  /** Tokens of each prompt; all of the prefix if absent. */
  prompts: number[] | undefined;
};

export const layerKernel = kernelOf<
  tf.Tensor[],
  [LayerOptions & { names: string[] }],
  [x: tf.Tensor2D, k: tf.Tensor3D, v: tf.Tensor3D]
>('DecoderLayer');

/**
 * Runs a layer where the backend has a kernel for it.
 * @returns the stream after the layer, and the past with this token's keys and values; undefined without such a kernel
 */
export function fusedDecoderLayer(
  tensors: LayerTensors<tf.Tensor>,
  options: LayerOptions,
): [x: tf.Tensor2D, k: tf.Tensor3D, v: tf.Tensor3D] | undefined {
  const kernel = layerKernel.find();
  if (!kernel) return undefined;
  const names = [...REQUIRED, ...OPTIONAL.filter((name) => tensors[name])];
  return kernel(
    names.map((name) => tensors[name]!),
    { ...options, names },
  );
}
