/** The files in which PEFT keeps an adapter. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { ensureFolder, writeFile } from '../folders.ts';
import { isObject, type JsonObject, readJsonObject } from '../json.ts';
import type { LlamaConfig } from '../model/config.ts';
import { adapterShapes } from '../model/lora.ts';
import type { Lora, Params } from '../model/model.ts';
import { shown } from '../text.ts';
import { tensorsToWrite } from './checkpoint.ts';
import { refuseNotFinite } from './finite.ts';
import { openSafetensors, writeSafetensors } from './safetensors.ts';

export const ADAPTER_CONFIG = 'adapter_config.json';
const WEIGHTS = 'adapter_model.safetensors';
/** Names of the files of an adapter. */
export const ADAPTER_FILES = [ADAPTER_CONFIG, WEIGHTS];
const PREFIX = 'base_model.model.'; // PEFT's name for what it wraps

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

/** Settings that may have any value: they are read here, or change neither what an adapter computes nor its training. */
const SUPPORTED = [
  ...['peft_type', 'base_model_name_or_path', 'revision', 'r', 'lora_alpha', 'task_type', 'inference_mode'],
  ...['target_modules', 'exclude_modules', 'layers_to_transform', 'layers_pattern'], // the file has those tensors only
  ...['lora_dropout', 'auto_mapping', 'peft_version', 'runtime_config', 'ensure_weight_tying', 'megatron_config'],
  ...['megatron_core', 'loftq_config', 'eva_config', 'corda_config', 'qalora_group_size'],
];

/** Accepted values of `init_lora_weights`: others change the weights below the adapter, too, or freeze a part of it. */
const INITIALIZATIONS: unknown[] = [true, 'gaussian', 'eva', 'orthogonal'];

/** Whether a setting may have this value. One that is not known here must be empty: then it changes nothing. */
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
