import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../run/errors.ts';
import { CHECKPOINT_FILES, type LlamaConfig, parameterShapes, readConfig, readJsonObject } from './config.ts';
import type { Params } from './llama.ts';
import { type FloatDtype, openSafetensors, type SafetensorsFile, writeSafetensors } from './safetensors.ts';

const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';

/** Files besides weights and config.json that make a checkpoint complete. */
const COMPANIONS =
  /^(generation_config\.json|tokenizer.*\.json|tokenizer\.model|special_tokens_map\.json|added_tokens\.json|chat_template\.(jinja|json))$/;

const TORCH_DTYPES: Record<FloatDtype, string> = { F32: 'float32', F16: 'float16', BF16: 'bfloat16' };

export type Checkpoint = {
  config: LlamaConfig;
  /** Float32 tensors by their Hugging Face name; the caller disposes of them. */
  params: Params;
  /** How each parameter is stored in the files. */
  dtypes: Record<string, FloatDtype>;
};

/**
 * Loads a Llama from a folder in Hugging Face layout: config.json with model.safetensors, or with shards and an index.
 * @param folder - checkpoint folder on this machine
 * @throws {UserError} if the folder is no checkpoint, or if a parameter is missing, misshapen or unknown
 */
export async function loadCheckpoint(folder: string): Promise<Checkpoint> {
  const files = await readdir(folder).catch(() => {
    throw new UserError(`${folder}: there is no such folder; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  });
  const config = await readConfig(folder);
  const { listing, fileOf } = await locateTensors(folder, files);
  const shapes = parameterShapes(config);
  refuseUnknown(listing, Object.keys(fileOf), shapes, config);

  const opened = new Map<string, SafetensorsFile>();
  const params: Params = {};
  const dtypes: Record<string, FloatDtype> = {};
  try {
    for (const [name, shape] of Object.entries(shapes)) {
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
          `${file}: tensor "${name}" must have the shape [${shape}] according to config.json, found [${entry.shape}].`,
        );
      }
      const values = await weights.read(name);
      params[name] = tf.tensor(values, shape, 'float32');
      dtypes[name] = entry.dtype as FloatDtype;
    }
  } catch (error) {
    tf.dispose(params);
    throw error;
  } finally {
    for (const weights of opened.values()) await weights.close();
  }
  return { config, params, dtypes };
}

/** Parameters (or anything else by their names) as {@link writeSafetensors} takes them. */
export const tensorsToWrite = (params: Params, dtype: FloatDtype | Record<string, FloatDtype> = 'F32') =>
  Object.entries(params).map(([name, tensor]) => ({
    name,
    dtype: typeof dtype === 'string' ? dtype : (dtype[name] ?? 'F32'),
    shape: tensor.shape,
    data: async () => (await tensor.data()) as Float32Array,
  }));

/**
 * Writes a checkpoint folder that transformers can load, in Python or here: the parameters as model.safetensors, and
 * config.json, tokenizer and chat template as they are in the folder the model came from.
 * @param folder - created if need be; files of the same names are replaced
 * @param model.source - checkpoint folder whose config.json and tokenizer belong to these parameters
 * @param model.params - parameters by their Hugging Face name
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
  // As Python's safetensors sorts: larger elements first, so that each tensor stays aligned, then by name.
  const isHalf = (tensor: { dtype: FloatDtype }) => Number(tensor.dtype !== 'F32');
  tensors.sort((a, b) => isHalf(a) - isHalf(b) || (a.name < b.name ? -1 : 1));
  const written = new Set(tensors.map((tensor) => tensor.dtype));
  const torchDtype = written.size === 1 ? TORCH_DTYPES[tensors[0].dtype] : 'float32';

  try {
    await mkdir(folder, { recursive: true });
    const config = await readFile(join(source, 'config.json'), 'utf8');
    await writeFile(join(folder, 'config.json'), withDtype(config, torchDtype));
    for (const file of await readdir(source)) {
      // Not copyFile(): it would make copies of read-only files read-only, and the next save would fail.
      if (COMPANIONS.test(file)) await writeFile(join(folder, file), await readFile(join(source, file)));
    }
  } catch (error) {
    throw new UserError(`${folder}: cannot be written as a checkpoint: ${(error as Error).message}`);
  }
  await writeSafetensors(join(folder, WEIGHTS), tensors, { format: 'pt' });
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
    const advice = pickle ? `; "${pickle}" is a pickle: load it in Python and save it with save_pretrained()` : '';
    throw new UserError(`${folder}: no ${WEIGHTS}; a checkpoint folder holds ${CHECKPOINT_FILES}${advice}.`);
  }
  const weightMap = index.weight_map;
  if (typeof weightMap !== 'object' || weightMap === null) {
    throw new UserError(`${listing}: "weight_map" must map tensor names to file names.`);
  }
  const fileOf = Object.entries(weightMap).map(([name, file]) => {
    // A name with a path in it could lead out of the folder.
    const isPlain = typeof file === 'string' && file === basename(file) && /^[^\\:]+\.safetensors$/.test(file);
    if (isPlain) return [name, join(folder, file)];
    throw new UserError(
      `${listing}: tensor "${name}" must be in a .safetensors file of this folder, found ${JSON.stringify(file)}.`,
    );
  });
  return { listing, fileOf: Object.fromEntries(fileOf) };
}

/** A tensor that the forward pass would not use means that the model is not the one that config.json describes. */
function refuseUnknown(listing: string, names: string[], shapes: Record<string, number[]>, config: LlamaConfig): void {
  for (const name of names) {
    const isRedundant =
      name.endsWith('.rotary_emb.inv_freq') || (config.tieWordEmbeddings && name === 'lm_head.weight');
    if (isRedundant || Object.hasOwn(shapes, name)) continue;
    throw new UserError(`${listing}: tensor "${name}" is not part of the Llama that config.json describes.`);
  }
}

/**
 * Sets the dtype in the text of a config.json. The text is edited, not parsed and written anew: JavaScript would turn
 * 10000.0 into 10000, and Python's transformers tells the two apart.
 */
function withDtype(config: string, torchDtype: string): string {
  const dtypeKey = /"(torch_dtype|dtype)"(\s*:\s*)("[^"]*"|null)/g;
  if (config.search(dtypeKey) === -1) return config.replace('{', `{\n  "torch_dtype": "${torchDtype}",`);
  return config.replace(dtypeKey, `"$1"$2"${torchDtype}"`);
}
