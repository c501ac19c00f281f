/** From the name of a model to the model: a folder or a repository of the hub, a checkpoint or an adapter of one. */
import { existsSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { UserError } from '../errors.ts';
import type { Head } from '../model/config.ts';
import type { Model } from '../model/model.ts';
import { shown } from '../text.ts';
import { type Checkpoint, loadCheckpoint } from './checkpoint.ts';
import { endTokens } from './end_tokens.ts';
import { refuseDamagedModel } from './hashed_files.ts';
import { resolveModel } from './hub.ts';
import { ADAPTER_CONFIG, readLora, readLoraSettings } from './lora_files.ts';
import { type ChatOptions, loadTokenizer, type Tokenizer } from './tokenizer.ts';

/** A checkpoint, the adapter on top of it where `loadPretrained` was given one, and where the checkpoint lies. */
export type Pretrained = Checkpoint & Pick<Model, 'lora'> & ModelPlace;

/** The folder of a model, and a name that stays: its full path, or `owner/name@commit` on the hub. */
export type ModelPlace = { folder: string; name: string };

/** Where a model lies: a checkpoint, and the adapter on top of it if `name` is that of an adapter. */
export type Located = ModelPlace & { adapter?: ModelPlace };

/**
 * Finds a model, and fetches it if need be. An adapter names the checkpoint below it in its settings.
 * @param name - a folder, or a repository of the Hugging Face hub: `owner/name` or `owner/name@revision`
 * @param options.base - the checkpoint below an adapter, if not the one that its settings name
 * @throws {UserError} if there is no such model
 */
export async function locatePretrained(name: string, options: { base?: string } = {}): Promise<Located> {
  const place = await locate(name);
  const settings = await readLoraSettings(place.folder);
  if (!settings) return place;
  if (options.base !== undefined) return { ...(await locate(options.base)), adapter: place };
  const { base_model_name_or_path: base, revision } = settings;
  const file = join(place.folder, ADAPTER_CONFIG);
  if (typeof base !== 'string') {
    throw new UserError(`${file}: "base_model_name_or_path" must name a model, found ${shown(base ?? null)}.`);
  }
  const isOnHub = typeof revision === 'string' && !existsSync(base);
  const below = await locate(isOnHub ? `${base}@${revision}` : base).catch((error) => {
    if (!(error instanceof UserError)) throw error;
    const message = error.message.replace(/\.$/, '');
    throw new UserError(
      `${file}: "base_model_name_or_path": ${message}; if that model was moved, write there where it is now`,
    );
  });
  return { ...below, adapter: place };
}

async function locate(name: string): Promise<ModelPlace> {
  const folder = await resolveModel(name);
  // In the hub's cache a folder is named after the commit.
  return { folder, name: folder === name ? resolve(folder) : `${name.split('@')[0]}@${basename(folder)}` };
}

/**
 * Loads a model that {@link locatePretrained} finds.
 * @param options.head - what it must have on top
 * @throws {UserError} if there is no such model, or it cannot be used here
 */
export async function loadPretrained(name: string, options: { base?: string; head?: Head } = {}): Promise<Pretrained> {
  const { adapter, ...place } = await locatePretrained(name, options);
  for (const { folder } of adapter ? [place, adapter] : [place]) await refuseDamagedModel(folder);
  const checkpoint = await loadCheckpoint(place.folder, options);
  if (!adapter) return { ...checkpoint, ...place };
  return { ...checkpoint, ...place, lora: await readLora(adapter.folder, checkpoint.config) };
}

/**
 * Loads a model with its tokenizer, as completions need them: the end tokens of both are the model's.
 * @param options.base - as for {@link locatePretrained}
 * @param options.head - what the model must have on top
 * @param options.tokenizer - another one than is in the model's folder
 * @returns both, and lines about what is unusual of the pair
 * @throws {UserError} if there is no such model, or it cannot be used here
 */
export async function loadWithTokenizer(
  name: string,
  options: ChatOptions & { base?: string; head?: Head; tokenizer?: Tokenizer | undefined } = {},
): Promise<{ model: Pretrained; tokenizer: Tokenizer; notices: string[] }> {
  return withTokenizer(await loadPretrained(name, options), options);
}

/** As {@link loadWithTokenizer}, for a model that is loaded already. */
export async function withTokenizer(
  model: Pretrained,
  options: ChatOptions & { tokenizer?: Tokenizer | undefined } = {},
): Promise<{ model: Pretrained; tokenizer: Tokenizer; notices: string[] }> {
  const tokenizer = options.tokenizer ?? (await loadTokenizer(model.folder, options));
  const { eosTokenIds, notices } = endTokens(model.config, tokenizer);
  if (!tokenizer.hasChatTemplate) {
    notices.push('no chat template: the prompt is system prompt and question, as plain text');
  }
  return { model: { ...model, config: { ...model.config, eosTokenIds } }, tokenizer, notices };
}
