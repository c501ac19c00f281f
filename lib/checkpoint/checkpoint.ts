import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { mistakeIn, UserError } from '../errors.ts';
import { ensureFolder, writeFile } from '../folders.ts';
import { isObject, type JsonObject, readJsonObject } from '../json.ts';
import { CHECKPOINT_FILES, type Head, type LlamaConfig, parameterShapes, readConfig } from '../model/config.ts';
import type { Params } from '../model/model.ts';
import { oneLine, shown } from '../text.ts';
import { refuseNotFinite } from './finite.ts';
import type { FloatDtype } from './half_precision.ts';
import { openSafetensors, pythonOrder, type SafetensorsFile, writeSafetensors } from './safetensors.ts';

const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const SHARD = /^model-\d+-of-\d+\.safetensors$/;

const EMBEDDING = 'model.embed_tokens.weight';
const HEAD = 'lm_head.weight';

/** Files besides weights and config.json that make a checkpoint complete. */
const COMPANIONS =
  /^(generation_config\.json|tokenizer.*\.json|tokenizer\.model|vocab\.json|merges\.txt|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json))$/;

/** The files besides the weights that are read here. */
const READ = /^((generation_)?config|tokenizer(_config)?|special_tokens_map)\.json$|^chat_template\.jinja$/;

/** PyTorch's names of the dtypes. */
const TORCH_DTYPES = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' } as const;

/** How a model can be saved: each parameter as in the checkpoint that it came from (`auto`), or all alike. */
export const SAVE_DTYPES = ['auto', 'float32', 'bfloat16', 'float16'] as const;
export type SaveDtype = (typeof SAVE_DTYPES)[number];

/** The dtype that PyTorch calls so. */
export const dtypeNamed = (name: string): FloatDtype | undefined =>
  (Object.keys(TORCH_DTYPES) as FloatDtype[]).find((dtype) => TORCH_DTYPES[dtype] === name);

export type Checkpoint = {
  config: LlamaConfig;
  /** Float32 tensors by their Hugging Face name; the caller disposes of them. */
  params: Params;
  /** How each parameter is stored in the files. */
  dtypes: Record<string, FloatDtype>;
};

/** A checkpoint whose parameters are read one by one. */
export type CheckpointFiles = {
  config: LlamaConfig;
  /** Of the parameters, by their names. */
  shapes: Record<string, number[]>;
  /** Values of a parameter, row-major, and how it is stored. */
  read(name: string): Promise<{ values: Float32Array; dtype: FloatDtype }>;
  close(): Promise<void>;
};

/**
 * Opens a Llama in a folder in Hugging Face layout: config.json with model.safetensors, or with shards and an index.
 * Tied embeddings may be stored under their own name, under the LM head's, or under both; here they have their own.
 * @param folder - checkpoint folder on this machine
 * @param options.head - what the model must have on top
 * @throws {UserError} if the folder is no checkpoint, or has unknown tensors; `read` does so if a parameter is missing,
 *   misshapen or not finite
 */
export async function openCheckpoint(folder: string, options: { head?: Head } = {}): Promise<CheckpointFiles> {
  const files = await readdir(folder).catch(() => {
    throw new UserError(`${folder}: there is no such folder; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  });
  const config = await readConfig(folder, options);
  const { listing, fileOf } = await locateTensors(folder, files);
  const shapes = parameterShapes(config);
  refuseUnknown(listing, Object.keys(fileOf), shapes, config);

  const opened = new Map<string, SafetensorsFile>();
  const readTensor = async (name: string, shape: number[]) => {
    if (!Object.hasOwn(fileOf, name)) {
      throw new UserError(`${listing}: tensor "${name}" is missing, which config.json asks for.`);
    }
    const file = fileOf[name];
    if (!opened.has(file)) opened.set(file, await openSafetensors(file));
    const weights = opened.get(file)!;
    const entry = weights.tensors.get(name);
    if (!entry) throw new UserError(`${file}: tensor "${name}" is missing, which ${INDEX} says is in this file.`);
    if (entry.shape.join() !== shape.join()) {
      throw new UserError(
        `${file}: tensor "${name}" must have the shape [${shape}] according to config.json, found ${shown(entry.shape)}.`,
      );
    }
    const values = await weights.read(name);
    refuseNotFinite(values, name, { file });
    return { values, dtype: entry.dtype as FloatDtype };
  };
  const read = async (name: string) => {
    const shape = shapes[name];
    const isTied = config.tieWordEmbeddings && name === EMBEDDING && Object.hasOwn(fileOf, HEAD);
    if (isTied && !Object.hasOwn(fileOf, name)) return readTensor(HEAD, shape);
    const tensor = await readTensor(name, shape);
    if (isTied && !haveSameBits(tensor.values, (await readTensor(HEAD, shape)).values)) {
      // transformers 4 would take the embedding for both, transformers 5 would not tie them: no guess is safe.
      throw new UserError(
        `${listing}: "${EMBEDDING}" and "${HEAD}" differ, but config.json says that they are one; if they are meant to be two, set "tie_word_embeddings" to false there.`,
      );
    }
    return tensor;
  };
  const close = async () => {
    for (const weights of opened.values()) await weights.close();
  };
  return { config, shapes, read, close };
}

/**
 * Loads all parameters of a checkpoint.
 * @param folder - as for {@link openCheckpoint}
 * @param options - as for {@link openCheckpoint}
 * @throws {UserError} if the folder is no checkpoint, or if a parameter is missing, misshapen, unknown or not finite
 */
export async function loadCheckpoint(folder: string, options: { head?: Head } = {}): Promise<Checkpoint> {
  const { config, shapes, read, close } = await openCheckpoint(folder, options);
  const params: Params = {};
  const dtypes: Record<string, FloatDtype> = {};
  try {
    for (const [name, shape] of Object.entries(shapes)) {
      const { values, dtype } = await read(name);
      params[name] = tf.tensor(values, shape, 'float32');
      // Native TensorFlow takes its copy at the first use: now, so that `values` need not be kept until then.
      tf.slice(
        params[name],
        shape.map(() => 0),
        shape.map(() => 1),
      ).dispose();
      dtypes[name] = dtype;
    }
  } catch (error) {
    tf.dispose(params);
    throw error;
  } finally {
    await close();
  }
  return { config, params, dtypes };
}

/**
 * Names of the files of a checkpoint that decide what its model says: configuration, weights, tokenizer.
 * @throws {UserError} if there are no weights
 */
export async function filesOf(folder: string): Promise<string[]> {
  const files = await readdir(folder);
  const { listing, fileOf } = await locateTensors(folder, files);
  const weights = [listing, ...Object.values(fileOf)].map((file) => basename(file));
  return [...new Set([...files.filter((file) => READ.test(file)), ...weights])].sort();
}

/** Parameters (or anything else by their names) as {@link writeSafetensors} takes them; values that are not finite are refused. */
export const tensorsToWrite = (params: Params, dtypes: FloatDtype | Record<string, FloatDtype> = 'F32') =>
  Object.entries(params).map(([name, tensor]) => {
    const dtype = typeof dtypes === 'string' ? dtypes : (dtypes[name] ?? 'F32');
    const data = async (begin: number, end: number) => {
      const part = tf.tidy(() => tf.slice(tf.reshape(tensor, [-1]), [begin], [end - begin]));
      try {
        const values = (await part.data()) as Float32Array;
        refuseNotFinite(values, name, { dtype });
        return values;
      } finally {
        part.dispose();
      }
    };
    return { name, dtype, shape: tensor.shape, data };
  });

/**
 * Writes a checkpoint folder that transformers can load, in Python or here: the parameters, under the names and in the
 * files (one, or shards with an index) that they have in the folder the model came from, and config.json, tokenizer and
 * chat template as they are there. Weights of an earlier save are replaced as a whole, once the new ones are complete;
 * the folder may be the one that the model came from.
 * @param folder - created if need be, below one that is there; files of the same names are replaced
 * @param model.source - checkpoint folder whose config.json and tokenizer belong to these parameters; if it no longer
 *   holds its weights, all goes into one file
 * @param model.params - parameters by their Hugging Face name; with a score among them, config.json says so
 * @param options.dtype - how to store them, all alike or each by its name (as in {@link Checkpoint}); F32, the default,
 *   loses nothing
 * @throws {UserError} if a file cannot be read or written
 */
export async function saveCheckpoint(
  folder: string,
  { source, params }: { source: string; params: Params },
  { dtype = 'F32' }: { dtype?: FloatDtype | Record<string, FloatDtype> } = {},
): Promise<void> {
  const tensors = tensorsToWrite(params, dtype);
  const written = new Set(tensors.map((tensor) => tensor.dtype));
  const { files, metadata } = await filesLike(source, Object.keys(params));
  // What is being written has a hidden name: an error or a kill on the way leaves the folder as it was.
  const partial = join(folder, '.partial');
  try {
    await rm(partial, { recursive: true, force: true });
    ensureFolder(folder);
    await mkdir(partial);
    const text = await readFile(join(source, 'config.json'), 'utf8');
    const config = 'score.weight' in params ? withScore(text) : text;
    // Of several dtypes, config.json goes on naming the one that it named.
    await writeFile(join(partial, 'config.json'), written.size > 1 ? config : withDtype(config, tensors[0].dtype));
    for (const file of await readdir(source)) {
      // Not copyFile(): it would make copies of read-only files read-only, and the next save would fail.
      if (COMPANIONS.test(file)) await writeFile(join(partial, file), await readFile(join(source, file)));
    }
    let totalSize = 0;
    for (const [file, names] of files) {
      const ofFile = tensors.flatMap((tensor) => (names.get(tensor.name) ?? []).map((name) => ({ ...tensor, name })));
      totalSize += await writeSafetensors(join(partial, file), ofFile.sort(pythonOrder), { format: 'pt' });
    }
    if (metadata) await writeFile(join(partial, INDEX), indexText(files, { ...metadata, total_size: totalSize }));
    await replaceFiles(partial, folder);
  } catch (error) {
    const mistake = mistakeIn(error);
    if (!mistake || error instanceof UserError) throw error;
    throw new UserError(`${folder}: cannot be written as a checkpoint: ${oneLine(mistake)}`);
  } finally {
    await rm(partial, { recursive: true, force: true }).catch(() => {}); // the error above, if any, is the one to tell
  }
}

/** For each file of a checkpoint: the names under which it stores each parameter. */
type Files = Map<string, Map<string, string[]>>;

/**
 * The files of a new checkpoint, as in the folder that the model came from.
 * @param names - of the parameters
 * @returns the files, and what the index says besides; `metadata` is null where there is no index, but one file
 */
async function filesLike(source: string, names: string[]): Promise<{ files: Files; metadata: JsonObject | null }> {
  const files: Files = new Map();
  const left = new Set(names);
  try {
    const { listing, fileOf } = await locateTensors(source, await readdir(source));
    for (const [stored, path] of Object.entries(fileOf)) {
      // Tied embeddings go by either name, or by both. What is no parameter was not loaded, and is left out.
      const name = stored === HEAD && !names.includes(HEAD) ? EMBEDDING : stored;
      if (!names.includes(name)) continue;
      const file = files.get(basename(path)) ?? new Map<string, string[]>();
      files.set(basename(path), file.set(name, [...(file.get(name) ?? []), stored]));
      left.delete(name);
    }
    const index = basename(listing) === INDEX ? await readJsonObject(listing) : null;
    if (left.size === 0) return { files, metadata: index && (isObject(index.metadata) ? index.metadata : {}) };
  } catch (error) {
    // Weights that were moved or damaged since are no reason to lose those that were trained.
    if (!mistakeIn(error)) throw error;
  }
  return { files: new Map([[WEIGHTS, new Map(names.map((name) => [name, [name]]))]]), metadata: null };
}

/** The index of a sharded checkpoint, with its keys sorted, as Python writes it. */
function indexText(files: Files, metadata: JsonObject): string {
  const sorted = (entries: [string, unknown][]) => Object.fromEntries(entries.sort(([a], [b]) => (a < b ? -1 : 1)));
  const places = [...files].flatMap(([file, names]) =>
    [...names.values()].flat().map((stored): [string, string] => [stored, file]),
  );
  const index = { metadata: sorted(Object.entries(metadata)), weight_map: sorted(places) };
  return `${JSON.stringify(index, null, 2)}\n`;
}

/**
 * Moves finished files into their folder. What they replace, and weights of another layout, which would mix with them, go
 * aside first: if anything fails they come back, and if the process is killed they are in `.replaced`.
 */
async function replaceFiles(from: string, folder: string): Promise<void> {
  const aside = join(folder, '.replaced');
  await rm(aside, { recursive: true, force: true });
  await mkdir(aside);
  const fresh = await readdir(from);
  const isOld = (file: string) => [WEIGHTS, INDEX, ...fresh].includes(file) || SHARD.test(file);
  const moved: [string, string][] = [];
  const move = async (file: string, source: string, target: string) => {
    await rename(join(source, file), join(target, file));
    moved.push([join(source, file), join(target, file)]);
  };
  try {
    for (const file of (await readdir(folder)).filter(isOld)) await move(file, folder, aside);
    for (const file of fresh) await move(file, from, folder);
  } catch (error) {
    for (const [source, target] of moved.reverse()) await rename(target, source);
    await rm(aside, { recursive: true, force: true });
    throw error;
  }
  await rm(aside, { recursive: true, force: true });
}

/** Which file holds which tensor: `fileOf` maps tensor names to paths; `listing` is the file that said so. */
async function locateTensors(
  folder: string,
  files: string[],
): Promise<{ listing: string; fileOf: Record<string, string> }> {
  if (files.includes(WEIGHTS)) {
    const listing = join(folder, WEIGHTS);
    const weights = await openSafetensors(listing);
    await weights.close();
    return { listing, fileOf: Object.fromEntries([...weights.tensors.keys()].map((name) => [name, listing])) };
  }
  const listing = join(folder, INDEX);
  const index = await readJsonObject(listing);
  if (!index) {
    const pickle = files.find((file) => /^pytorch_model.*\.bin$/.test(file));
    const advice = pickle
      ? `; "${oneLine(pickle)}" is a pickle: load it in Python and save it with save_pretrained()`
      : '';
    throw new UserError(`${folder}: no ${WEIGHTS}; a checkpoint folder holds ${CHECKPOINT_FILES}${advice}.`);
  }
  const weightMap = index.weight_map;
  if (!isObject(weightMap)) {
    throw new UserError(`${listing}: "weight_map" must map tensor names to file names.`);
  }
  const fileOf = Object.entries(weightMap).map(([name, file]) => {
    // A name with a path in it could lead out of the folder.
    const isName = typeof file === 'string' && file === basename(file) && file.length < 256;
    const isPlain = isName && /^[^\\:\p{Cc}\p{Zl}\p{Zp}]+\.safetensors$/u.test(file);
    if (isPlain) return [name, join(folder, file)];
    throw new UserError(
      `${listing}: tensor ${shown(name)} must be in a .safetensors file of this folder, found ${shown(file)}.`,
    );
  });
  return { listing, fileOf: Object.fromEntries(fileOf) };
}

const haveSameBits = (a: Float32Array, b: Float32Array): boolean =>
  Buffer.from(a.buffer, a.byteOffset, a.byteLength).equals(Buffer.from(b.buffer, b.byteOffset, b.byteLength));

/** A tensor that the forward pass would not use means that the model is not the one that config.json describes. */
function refuseUnknown(listing: string, names: string[], shapes: Record<string, number[]>, config: LlamaConfig): void {
  for (const name of names) {
    const isRedundant = name.endsWith('.rotary_emb.inv_freq') || (config.tieWordEmbeddings && name === HEAD);
    if (isRedundant || Object.hasOwn(shapes, name)) continue;
    throw new UserError(`${listing}: tensor ${shown(name)} is not part of the Llama that config.json describes.`);
  }
}

/** The text of a config.json for a model that has been given a score in place of its logits. */
function withScore(config: string): string {
  const architecture = config.replace(
    /(?<="architectures"\s*:\s*\[\s*"\w+)ForCausalLM(?=")/,
    'ForSequenceClassification',
  );
  if (architecture === config) return config; // it had one before
  return architecture.replace('{', '{\n  "id2label": { "0": "LABEL_0" },\n  "label2id": { "LABEL_0": 0 },');
}

/**
 * Sets the dtype in the text of a config.json. The text is edited, not parsed and written anew: JavaScript would turn
 * 10000.0 into 10000, and Python's transformers tells the two apart.
 */
function withDtype(config: string, dtype: FloatDtype): string {
  const torchDtype = TORCH_DTYPES[dtype];
  const dtypeKey = /"(torch_dtype|dtype)"(\s*:\s*)("[^"]*"|null)/g;
  if (config.search(dtypeKey) === -1) return config.replace('{', `{\n  "torch_dtype": "${torchDtype}",`);
  return config.replace(dtypeKey, `"$1"$2"${torchDtype}"`);
}
