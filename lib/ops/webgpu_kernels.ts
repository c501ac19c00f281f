/** The project's own kernels for the webgpu backend, each of which computes in one pass what an operation defines plainly. */
import * as tf from '@tensorflow/tfjs';
import { adamWOnWebGpu } from './adamw/webgpu_binding.ts';
import { addOnWebGpu, multiplyOnWebGpu } from './add/webgpu_binding.ts';
import { appendOnWebGpu } from './append/webgpu_binding.ts';
import { attentionOnWebGpu } from './attention/webgpu_binding.ts';
import { decoderLayerOnWebGpu } from './decoder_layer/webgpu_binding.ts';
import { matMulOnWebGpu } from './mat_mul/webgpu_binding.ts';
import { gatherOnWebGpu, moveRowsOnWebGpu, sumSegmentsOnWebGpu } from './move_rows/webgpu_binding.ts';
import { createWebGpu, type WebGpuKernel } from './on_webgpu.ts';
import { rmsNormOnWebGpu } from './rms_norm/webgpu_binding.ts';
import { rotaryEmbeddingOnWebGpu } from './rotary_embedding/webgpu_binding.ts';
import { sampleTokensOnWebGpu } from './sample_tokens/webgpu_binding.ts';
import { sumOfSquaresOnWebGpu } from './sum_of_squares/webgpu_binding.ts';
import { swiGluOnWebGpu } from './swiglu/webgpu_binding.ts';
import { tokenLogProbsOnWebGpu } from './token_log_probs/webgpu_binding.ts';
import type { WebGpuBackend } from './webgpu_backend.ts';

export const WEBGPU_KERNELS: WebGpuKernel[] = [
  ...adamWOnWebGpu,
  ...appendOnWebGpu,
  ...attentionOnWebGpu,
  ...decoderLayerOnWebGpu,
  ...moveRowsOnWebGpu,
  ...rmsNormOnWebGpu,
  ...rotaryEmbeddingOnWebGpu,
  ...sampleTokensOnWebGpu,
  ...sumOfSquaresOnWebGpu,
  ...swiGluOnWebGpu,
  ...tokenLogProbsOnWebGpu,
];

/** Those that stand in the place of one of the backend's own. */
const REPLACEMENTS: WebGpuKernel[] = [
  addOnWebGpu,
  gatherOnWebGpu,
  matMulOnWebGpu,
  multiplyOnWebGpu,
  sumSegmentsOnWebGpu,
];

/** Registers them with the webgpu backend, which must be the current one. */
export function registerWebGpuKernels(options: { batch: number }): void {
  const webgpu = createWebGpu(tf.backend() as WebGpuBackend, options);
  for (const kernel of [...WEBGPU_KERNELS, ...REPLACEMENTS]) kernel.register(webgpu);
}
