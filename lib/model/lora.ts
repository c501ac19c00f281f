/** Low-rank adapters (Hu et al. 2021, "LoRA"). */
import * as tf from '@tensorflow/tfjs';
import { uniform } from '../random.ts';
import { type LlamaConfig, parameterShapes } from './config.ts';
import type { Lora, Model, Params } from './model.ts';

/** The projections of a layer that can have an adapter. */
export const LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
export type LoraTarget = (typeof LORA_TARGETS)[number];

/**
 * A new adapter, which changes nothing yet: B is zero, and A is drawn from U(−1/√in, 1/√in), as in PEFT.
 * @param options.alpha - `scale` is alpha / rank, so that a learning rate suits any rank
 * @param options.base - the model that the adapter belongs to, as Python finds it: a folder, or a name on the hub with its
 *   `revision`
 * @returns params that the caller disposes of
 */
export function createLora(
  config: LlamaConfig,
  options: { rank: number; alpha: number; targets: LoraTarget[]; seed: number; base: string; revision?: string | null },
): Lora {
  const { rank, alpha, targets, seed, base, revision = null } = options;
  const params: Params = {};
  Object.entries(adapterShapes(config, rank)).forEach(([name, shape], number) => {
    if (!targets.some((target) => name.includes(`.${target}.`))) return;
    const bound = 1 / Math.sqrt(shape[1]);
    const draw = (_: unknown, i: number) => bound * (2 * uniform(seed, LORA_DRAW, number, i) - 1);
    const isA = name.endsWith('.lora_A.weight');
    params[name] = isA ? tf.tensor(Float32Array.from({ length: rank * shape[1] }, draw), shape) : tf.zeros(shape);
  });
  const settings = {
    base_model_name_or_path: base,
    bias: 'none',
    fan_in_fan_out: false,
    inference_mode: true,
    lora_alpha: alpha,
    lora_dropout: 0,
    peft_type: 'LORA',
    r: rank,
    revision,
    target_modules: targets,
    task_type: 'CAUSAL_LM',
  };
  return { params, scale: alpha / rank, settings };
}

/** Sets these draws apart from those of sampling, whose first counter is a step. */
const LORA_DRAW = -(2 ** 40);

/** Shapes of A and B of every projection that can have an adapter, by name. */
export const adapterShapes = (config: LlamaConfig, rank: number): Record<string, number[]> =>
  Object.fromEntries(
    Object.entries(parameterShapes(config))
      .filter(([name]) => name.endsWith('_proj.weight'))
      .flatMap(([name, [out, into]]) => [
        [name.replace('.weight', '.lora_A.weight'), [rank, into]],
        [name.replace('.weight', '.lora_B.weight'), [out, rank]],
      ]),
  );

/**
 * Merges an adapter into the weights: `W + scale · B A`. The model's own matrices are disposed of as they are replaced,
 * so that there is never much more than one copy; neither it nor the adapter is to be used after that.
 * @returns the parameters of the merged model
 */
export function mergeLora(model: Model): Params {
  const merged = { ...model.params };
  for (const name of adapted(model)) {
    merged[name] = mergedWeight(model, name);
    model.params[name].dispose();
  }
  return merged;
}

/** Bytes up to which a model and a merged copy of its matrices may lie side by side on wasm, whose memory ends at 4 GB. */
const MOST_ON_WASM = 2.8e9;

/**
 * The same policy with one product in each projection in place of an adapter's three, while `use` runs. Without an adapter, or
 * if there is no room for the merged matrices beside the others, it is the model itself.
 */
export async function withMergedLora<T>(model: Model, use: (merged: Model) => Promise<T>): Promise<T> {
  const names = adapted(model);
  const copied = names.map((name) => model.params[name]);
  const numbers = [...Object.values(model.params), ...copied].reduce((sum, { size }) => sum + size, 0);
  if (names.length === 0 || (tf.getBackend() === 'wasm' && 4 * numbers > MOST_ON_WASM)) return use(model);
  const merged = Object.fromEntries(names.map((name) => [name, mergedWeight(model, name)]));
  try {
    return await use({ ...model, params: { ...model.params, ...merged }, lora: undefined });
  } finally {
    tf.dispose(merged);
  }
}

/** The names of the matrices that have an adapter. */
const adapted = ({ lora }: Model): string[] =>
  Object.keys(lora?.params ?? {})
    .filter((name) => name.endsWith('.lora_A.weight'))
    .map((name) => name.replace('.lora_A.weight', '.weight'));

/** `W + scale · B A` */
function mergedWeight({ params, lora }: Model, name: string): tf.Tensor {
  const [a, b] = ['A', 'B'].map((matrix) => lora!.params[name.replace('.weight', `.lora_${matrix}.weight`)]);
  return tf.tidy(() => tf.add(params[name], tf.matMul(tf.mul(b, lora!.scale) as tf.Tensor2D, a as tf.Tensor2D)));
}
