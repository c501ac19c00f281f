/** Low-rank adapters (Hu et al. 2021, "LoRA"), and the files in which PEFT keeps them. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../run/errors.ts';
import { ensureFolder, writeFile } from '../run/folders.ts';
import { uniform } from '../run/random.ts';
import { tensorsToWrite } from './checkpoint.ts';
import { type LlamaConfig, parameterShapes, readJsonObject } from './config.ts';
import { refuseNotFinite } from './finite.ts';
import { isObject, type JsonObject, shown } from './json.ts';
import type { Model, Params } from './llama.ts';
import { openSafetensors, writeSafetensors } from './safetensors.ts';

/**
 * An adapter: the projection `x Wᵀ` becomes `x Wᵀ + scale · (x Aᵀ) Bᵀ`, where A and B are narrow (eq. 3).
 * - `params`: A of shape (rank, in) and B of shape (out, rank) of every adapted projection, under names such as
 *   `model.layers.0.self_attn.q_proj.lora_A.weight`
 * - `settings`: what `adapter_config.json` holds
 */
export type Lora = { params: Params; scale: number; settings: JsonObject };

/** The projections of a layer that can have an adapter. */
export const LORA_TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj'] as const;
export type LoraTarget = (typeof LORA_TARGETS)[number];

export const ADAPTER_CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';
/** Names of the files of an adapter. */
export const ADAPTER_FILES = [ADAPTER_CONFIG, WEIGHTS];
const PREFIX = 'base_model.model.'; // PEFT's name for what it wraps

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
const adapterShapes = (config: LlamaConfig, rank: number): Record<string, number[]> =>
  Object.fromEntries(
    Object.entries(parameterShapes(config))
      .filter(([name]) => name.endsWith('_proj.weight'))
      .flatMap(([name, [out, into]]) => [
        [name.replace('.weight', '.lora_A.weight'), [rank, into]],
        [name.replace('.weight', '.lora_B.weight'), [out, rank]],
      ]),
  );

/** The settings of the adapter in a folder; null if it holds none. */
export const readLoraSettings = (folder: string): Promise<JsonObject | null> =>
  readJsonObject(join(folder, ADAPTER_CONFIG));

/**
 * Reads an adapter in PEFT's format.
 * @param config - of the model that it belongs to
 * @returns params that the caller disposes of
 * @throws {UserError} if a file is missing or malformed, holds NaN, does not fit the model, or asks for what is not implemented
 */
export async function readLora(folder: string, config: LlamaConfig): Promise<Lora> {
  const settings = await readLoraSettings(folder);
  if (!settings)
    throw new UserError(`${folder}: there is no ${ADAPTER_CONFIG}; an adapter's folder holds it and ${WEIGHTS}.`);
  const { rank, scale } = checkSettings(join(folder, ADAPTER_CONFIG), settings);
  if (!existsSync(join(folder, WEIGHTS))) {
    throw new UserError(
      `${folder}: there is ${ADAPTER_CONFIG}, but not ${WEIGHTS}, the adapter's weights: put it beside, or save the adapter once more.`,
    );
  }
  const file = await openSafetensors(join(folder, WEIGHTS));
  const params: Params = {};
  try {
    const shapes = adapterShapes(config, rank);
    const found = new Map([...file.tensors].map(([name, { shape }]) => [name.replace(PREFIX, ''), { name, shape }]));
    for (const [name, { name: stored, shape }] of found) {
      const expected = shapes[name];
      if (!expected)
        throw new UserError(`${file.file}: tensor ${shown(stored)} belongs to no projection of this model.`);
      if (String(shape) !== String(expected)) {
        throw new UserError(
          `${file.file}: tensor ${shown(stored)} must have the shape [${expected}], found [${shape}].`,
        );
      }
      const other = name.replace(/lora_[AB]/, (letter) => (letter === 'lora_A' ? 'lora_B' : 'lora_A'));
      if (!found.has(other))
        throw new UserError(`${file.file}: ${shown(stored)} is there without its ${other.slice(-13, -7)}.`);
    }
    if (found.size === 0) throw new UserError(`${file.file}: there is no tensor in it.`);
    // In the model's order, not the file's: sums over parameters then round as they did before they were saved.
    for (const [name, shape] of Object.entries(shapes)) {
      if (!found.has(name)) continue;
      const stored = found.get(name)!.name;
      const values = await file.read(stored);
      refuseNotFinite(values, stored, { file: file.file });
      params[name] = tf.tensor(values, shape);
    }
  } catch (error) {
    tf.dispose(params);
    throw error;
  } finally {
    await file.close();
  }
  return { params, scale, settings };
}

/** Settings that may say something: they are read here, or change neither what an adapter computes nor its training. */
const SUPPORTED = [
  ...['peft_type', 'base_model_name_or_path', 'revision', 'r', 'lora_alpha', 'task_type', 'inference_mode'],
  ...['target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern'], // the file has those tensors only
  ...['lora_dropout', 'auto_mapping', 'peft_version', 'runtime_config', 'ensure_weight_tying', 'megatron_config'],
  ...['megatron_core', 'loftq_config', 'eva_config', 'corda_config', 'qalora_group_size'],
];

/** Other ways to start an adapter change the weights below it, too, or freeze a part of it. */
const INITIALIZATIONS: unknown[] = [true, 'gaussian', 'eva', 'orthogonal'];

/** What a setting may be. Of one that is not known here, nothing but an empty value is of no consequence. */
function isSupported(key: string, value: unknown): boolean {
  if ((value ?? false) === false || SUPPORTED.includes(key)) return true;
  if (key === 'bias') return value === 'none';
  if (key === 'use_rslora') return value === true;
  if (key === 'init_lora_weights') return INITIALIZATIONS.includes(value);
  return Array.isArray(value) ? value.length === 0 : isObject(value) && Object.keys(value).length === 0;
}

function checkSettings(file: string, settings: JsonObject): { rank: number; scale: number } {
  const { peft_type: type, r: rank, lora_alpha: alpha, use_rslora: rankStabilized } = settings;
  if (type !== 'LORA') throw new UserError(`${file}: "peft_type" must be "LORA", found ${shown(type ?? null)}.`);
  const unsupported = Object.keys(settings).find((key) => !isSupported(key, settings[key]));
  if (unsupported !== undefined) {
    throw new UserError(`${file}: ${shown(unsupported)}: ${shown(settings[unsupported])} is not supported.`);
  }
  if (!Number.isSafeInteger(rank) || (rank as number) < 1) {
    throw new UserError(`${file}: "r" must be a positive integer, found ${shown(rank ?? null)}.`);
  }
  const divisor = rankStabilized === true ? Math.sqrt(rank as number) : (rank as number);
  const scale = typeof alpha === 'number' ? alpha / divisor : Number.NaN;
  if (Math.fround(scale) === 0 || !Number.isFinite(Math.fround(scale))) {
    throw new UserError(
      `${file}: "lora_alpha" must be a number, and not 0, with which an adapter does nothing; found ${shown(alpha ?? null)}.`,
    );
  }
  return { rank: rank as number, scale };
}

/**
 * Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors` (float32).
 * @param folder - created if need be, below one that is there
 * @throws {UserError} if a file cannot be written
 */
export async function writeLora(folder: string, { params, settings }: Lora): Promise<void> {
  ensureFolder(folder);
  await writeFile(join(folder, ADAPTER_CONFIG), `${JSON.stringify(settings, null, 2)}\n`);
  const tensors = tensorsToWrite(params).map((tensor) => ({ ...tensor, name: `${PREFIX}${tensor.name}` }));
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1));
  await writeSafetensors(join(folder, WEIGHTS), tensors, { format: 'pt' });
}

/**
 * Merges an adapter into the weights: `W + scale · B A`. The model's own matrices are disposed of as they are replaced,
 * so that there is never much more than one copy; neither it nor the adapter is to be used after that.
 * @returns the parameters of the merged model
 */
export function mergeLora({ params, lora }: Model): Params {
  const merged = { ...params };
  for (const name of Object.keys(lora?.params ?? {}).filter((name) => name.endsWith('.lora_A.weight'))) {
    const module = name.replace('.lora_A.weight', '');
    const [a, b] = ['A', 'B'].map((matrix) => lora!.params[`${module}.lora_${matrix}.weight`] as tf.Tensor2D);
    const weight = params[`${module}.weight`];
    merged[`${module}.weight`] = tf.tidy(() => tf.add(weight, tf.mul(tf.matMul(b, a), lora!.scale)));
    weight.dispose();
  }
  return merged;
}
