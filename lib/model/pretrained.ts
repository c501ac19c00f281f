/** From the name of a model to the model: a folder or a repository of the hub, a checkpoint or an adapter of one. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UserError } from '../run/errors.ts';
import { type Checkpoint, loadCheckpoint } from './checkpoint.ts';
import { endTokens } from './end_tokens.ts';
import { resolveModel } from './hub.ts';
import { shown } from './json.ts';
import type { Model } from './llama.ts';
import { ADAPTER_CONFIG, readLora, readLoraSettings } from './lora.ts';
import { type ChatOptions, loadTokenizer, type Tokenizer } from './tokenizer.ts';

/** A checkpoint, the adapter on top of it where `loadPretrained` was given one, and the checkpoint's folder. */
export type Pretrained = Checkpoint & Pick<Model, 'lora'> & { folder: string };

/** Where a model lies: the folder of a checkpoint, and of the adapter on top of it if `name` is that of an adapter. */
export type Located = { folder: string; adapter?: string };

/**
 * Finds a model, and fetches it if need be. An adapter names the checkpoint below it in its settings.
 * @param name - a folder, or a repository of the Hugging Face hub: `owner/name` or `owner/name@revision`
 * @throws {UserError} if there is no such model
 */
export async function locatePretrained(name: string): Promise<Located> {
  const folder = await resolveModel(name);
  const settings = await readLoraSettings(folder);
  if (!settings) return { folder };
  const { base_model_name_or_path: base, revision } = settings;
  const file = join(folder, ADAPTER_CONFIG);
  if (typeof base !== 'string') {
    throw new UserError(`${file}: "base_model_name_or_path" must name a model, found ${shown(base ?? null)}.`);
  }
  const isOnHub = typeof revision === 'string' && !existsSync(base);
  const below = await resolveModel(isOnHub ? `${base}@${revision}` : base).catch((error) => {
    if (!(error instanceof UserError)) throw error;
    throw new UserError(`${file}: "base_model_name_or_path": ${error.message}`);
  });
  return { folder: below, adapter: folder };
}

/**
 * Loads a model that {@link locatePretrained} finds.
 * @throws {UserError} if there is no such model, or it cannot be used here
 */
export async function loadPretrained(name: string): Promise<Pretrained> {
  const { folder, adapter } = await locatePretrained(name);
  const checkpoint = await loadCheckpoint(folder);
  if (!adapter) return { ...checkpoint, folder };
  return { ...checkpoint, folder, lora: await readLora(adapter, checkpoint.config) };
}

/**
 * Loads a model with its tokenizer, as completions need them: the end tokens of both are the model's.
 * @returns both, and lines about what is unusual of the pair
 * @throws {UserError} if there is no such model, or it cannot be used here
 */
export async function loadWithTokenizer(
  name: string,
  options: ChatOptions = {},
): Promise<{ model: Pretrained; tokenizer: Tokenizer; notices: string[] }> {
  const model = await loadPretrained(name);
  const tokenizer = await loadTokenizer(model.folder, options);
  const { eosTokenIds, notices } = endTokens(model.config, tokenizer);
  if (!tokenizer.hasChatTemplate) {
    notices.push('no chat template: the prompt is system prompt and question, as plain text');
  }
  return { model: { ...model, config: { ...model.config, eosTokenIds } }, tokenizer, notices };
}
