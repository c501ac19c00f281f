/** From the name of a model to the model: a folder or a repository of the hub, a checkpoint or an adapter of one. */
import { join } from 'node:path';
import { UserError } from '../run/errors.ts';
import { type Checkpoint, loadCheckpoint } from './checkpoint.ts';
import { resolveModel } from './hub.ts';
import type { Model } from './llama.ts';
import { ADAPTER_CONFIG, readLora, readLoraSettings } from './lora.ts';

/** A checkpoint, the adapter on top of it where `loadPretrained` was given one, and the checkpoint's folder. */
export type Pretrained = Checkpoint & Pick<Model, 'lora'> & { folder: string };

/**
 * Loads a model. The folder of a LoRA adapter brings the checkpoint that its settings name as its base.
 * @param name - a folder, or a repository of the Hugging Face hub (`owner/name` or `owner/name@revision`), which is
 *   fetched if it is not in the cache
 * @throws {UserError} if there is no such model, or it cannot be used here
 */
export async function loadPretrained(name: string): Promise<Pretrained> {
  const folder = await resolveModel(name);
  const settings = await readLoraSettings(folder);
  if (!settings) return { ...(await loadCheckpoint(folder)), folder };
  const { base_model_name_or_path: base, revision } = settings;
  const file = join(folder, ADAPTER_CONFIG);
  if (typeof base !== 'string') {
    throw new UserError(`${file}: "base_model_name_or_path" must name a model, found ${JSON.stringify(base ?? null)}.`);
  }
  const baseFolder = await resolveModel(typeof revision === 'string' ? `${base}@${revision}` : base).catch((error) => {
    if (!(error instanceof UserError)) throw error;
    throw new UserError(`${file}: "base_model_name_or_path": ${error.message}`);
  });
  const checkpoint = await loadCheckpoint(baseFolder);
  return { ...checkpoint, folder: baseFolder, lora: await readLora(folder, checkpoint.config) };
}
