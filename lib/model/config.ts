import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UserError } from '../run/errors.ts';
import { isObject, type JsonObject, oneLine, shown } from './json.ts';

export type { JsonObject };

/** How rotary frequencies are slowed down for contexts longer than those of pretraining. */
export type RopeScaling = { type: 'linear'; factor: number } | Llama3Scaling;

export type Llama3Scaling = {
  type: 'llama3';
  factor: number;
  lowFreqFactor: number;
  highFreqFactor: number;
  originalMaxPositionEmbeddings: number;
};

/** What `config.json` says about a Llama or Qwen, under the same names in camelCase (`numLayers` for `num_hidden_layers` etc.). */
export type LlamaConfig = {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  rmsNormEps: number;
  ropeTheta: number;
  ropeScaling: RopeScaling | null;
  maxPositionEmbeddings: number;
  tieWordEmbeddings: boolean;
  /** Which projections have a bias: q, k and v; o; gate, up and down. */
  biases: { qkv: boolean; o: boolean; mlp: boolean };
  /** Whether queries and keys go through an RMSNorm of each head (Qwen3). */
  qkNorm: boolean;
  bosTokenId: number | null;
  /** Each of them ends a text. Those of `generation_config.json`, or else of `config.json`. */
  eosTokenIds: number[];
  torchDtype: string;
};

/**
 * Reads and checks `config.json` (and the end-of-text tokens in `generation_config.json`) of a Hugging Face checkpoint:
 * Llama, Qwen2 (and 2.5) or Qwen3.
 * Takes the keys of older and newer versions of transformers; a key that is missing gets transformers' default.
 * @param folder - checkpoint folder
 * @throws {UserError} if a file is missing or malformed, or if the model has a feature that is not implemented here:
 *   better no result than a wrong one
 */
export async function readConfig(folder: string): Promise<LlamaConfig> {
  const file = join(folder, 'config.json');
  const json = await readJsonObject(file);
  if (!json) throw new UserError(`${file}: there is no such file; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  const modelType = refuseUnsupported(file, json);
  const { integer, number, boolean, tokenIds } = fieldsOf(file, json);

  const hiddenSize = integer('hidden_size');
  const numHeads = integer('num_attention_heads');
  const numKvHeads = integer('num_key_value_heads', { fallback: numHeads });
  if (numHeads % numKvHeads !== 0) {
    throw new UserError(
      `${file}: "num_attention_heads" (${numHeads}) must be a multiple of "num_key_value_heads" (${numKvHeads}).`,
    );
  }
  const headDim = integer('head_dim', { fallback: modelType === 'qwen3' ? 128 : hiddenSize / numHeads });
  if (headDim % 2 !== 0) {
    throw new UserError(
      `${file}: the head dimension ("head_dim", or "hidden_size" / "num_attention_heads") must be even, found ${headDim}.`,
    );
  }
  const generationFile = join(folder, 'generation_config.json');
  const generation = (await readJsonObject(generationFile)) ?? {};
  const generationEos = fieldsOf(generationFile, generation).tokenIds('eos_token_id', []);

  return {
    vocabSize: integer('vocab_size'),
    hiddenSize,
    intermediateSize: integer('intermediate_size'),
    numLayers: integer('num_hidden_layers', { max: 1000 }),
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps: number('rms_norm_eps', { fallback: 1e-6 }),
    ...readRope(file, json),
    maxPositionEmbeddings: integer('max_position_embeddings', { fallback: 2048 }),
    tieWordEmbeddings: boolean('tie_word_embeddings', false),
    // Qwen2 has them without a word in its config; in Llama and Qwen3 "attention_bias" means o as well.
    biases: {
      qkv: modelType === 'qwen2' || boolean('attention_bias', false),
      o: modelType !== 'qwen2' && boolean('attention_bias', false),
      mlp: modelType === 'llama' && boolean('mlp_bias', false),
    },
    qkNorm: modelType === 'qwen3',
    bosTokenId: tokenIds('bos_token_id', [1])[0] ?? null,
    eosTokenIds: generationEos.length > 0 ? generationEos : tokenIds('eos_token_id', [2]),
    torchDtype: [json.torch_dtype, json.dtype].find((dtype) => typeof dtype === 'string') ?? 'float32',
  };
}

/**
 * Angles that rotary position embedding advances by from one position to the next, fastest first (RoFormer, section
 * 3.4.2), slowed down for long contexts where the config says so (linear and llama3 scaling, as in transformers'
 * `modeling_rope_utils.py`). Rounded to float32, as the checkpoints were trained.
 * @returns radians a position, shape (headDim / 2)
 */
export function ropeInverseFrequencies(
  config: Pick<LlamaConfig, 'headDim' | 'ropeTheta' | 'ropeScaling'>,
): Float32Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = ropeTheta ** ((-2 * i) / headDim);
    if (!ropeScaling) return frequency;
    if (ropeScaling.type === 'linear') return frequency / ropeScaling.factor;
    const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = ropeScaling;
    // Turns within the original context: many turns are left alone, less than one is slowed by the whole factor.
    const turns = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
    const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    const kept = Math.min(1, Math.max(0, smooth));
    return frequency * (kept + (1 - kept) / factor);
  });
}

/** Shape of every parameter by its Hugging Face name, in the order of PyTorch's `state_dict()`. Matrices are (out, in). */
export function parameterShapes(config: LlamaConfig): Record<string, number[]> {
  const { vocabSize, hiddenSize, intermediateSize, numLayers, numHeads, numKvHeads, headDim, biases, qkNorm } = config;
  const shapes: Record<string, number[]> = { 'model.embed_tokens.weight': [vocabSize, hiddenSize] };
  for (let i = 0; i < numLayers; i++) {
    const layer = `model.layers.${i}`;
    const projection = (name: string, [out, into]: [number, number], bias: boolean) => {
      shapes[`${layer}.${name}_proj.weight`] = [out, into];
      if (bias) shapes[`${layer}.${name}_proj.bias`] = [out];
    };
    projection('self_attn.q', [numHeads * headDim, hiddenSize], biases.qkv);
    projection('self_attn.k', [numKvHeads * headDim, hiddenSize], biases.qkv);
    projection('self_attn.v', [numKvHeads * headDim, hiddenSize], biases.qkv);
    projection('self_attn.o', [hiddenSize, numHeads * headDim], biases.o);
    if (qkNorm) for (const name of ['q_norm', 'k_norm']) shapes[`${layer}.self_attn.${name}.weight`] = [headDim];
    projection('mlp.gate', [intermediateSize, hiddenSize], biases.mlp);
    projection('mlp.up', [intermediateSize, hiddenSize], biases.mlp);
    projection('mlp.down', [hiddenSize, intermediateSize], biases.mlp);
    shapes[`${layer}.input_layernorm.weight`] = [hiddenSize];
    shapes[`${layer}.post_attention_layernorm.weight`] = [hiddenSize];
  }
  shapes['model.norm.weight'] = [hiddenSize];
  if (!config.tieWordEmbeddings) shapes['lm_head.weight'] = [vocabSize, hiddenSize];
  return shapes;
}

/** For messages: what a checkpoint folder must hold. */
export const CHECKPOINT_FILES =
  'config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer.json and tokenizer_config.json';

/**
 * Reads a file that holds one JSON object.
 * @returns the object, or null if there is no such file
 * @throws {UserError} if the file cannot be read, or holds something else
 */
export async function readJsonObject(file: string): Promise<JsonObject | null> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    throw new UserError(`${file}: cannot be read: ${message}`);
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new UserError(`${file}: not valid JSON: ${oneLine((error as Error).message)}`);
  }
  if (isObject(json)) return json;
  throw new UserError(`${file}: must hold a JSON object, found ${shown(json)}.`);
}

/** The architectures that are computed here, and their `model_type`. */
const ARCHITECTURES = { LlamaForCausalLM: 'llama', Qwen2ForCausalLM: 'qwen2', Qwen3ForCausalLM: 'qwen3' } as const;

/** @returns the model's type */
function refuseUnsupported(file: string, json: JsonObject): 'llama' | 'qwen2' | 'qwen3' {
  if (typeof json.experiment === 'string') {
    throw new UserError(`${file}: this is the folder of a run: name the model in it, final_model or a checkpoint.`);
  }
  const refuse = (what: string): never => {
    throw new UserError(
      `${file}: ${what} is not supported; supported are ${Object.keys(ARCHITECTURES).join(', ')} without such options.`,
    );
  };
  const { architectures, model_type: modelType } = json;
  const types = Object.entries(ARCHITECTURES).flatMap(([name, type]) =>
    (Array.isArray(architectures) ? architectures.includes(name) : !architectures && modelType === type) ? [type] : [],
  );
  if (types.length !== 1) refuse(`architecture ${shown(architectures ?? modelType ?? null)}`);
  if (modelType && modelType !== types[0]) refuse(`"model_type": ${shown(modelType)}`);
  if ((json.hidden_act ?? 'silu') !== 'silu') refuse(`"hidden_act": ${shown(json.hidden_act)}`);
  if (json.quantization_config) refuse('a quantized checkpoint ("quantization_config")');
  const windows = Array.isArray(json.layer_types) && json.layer_types.some((type) => type !== 'full_attention');
  if (json.use_sliding_window || windows) refuse('sliding-window attention');
  return types[0];
}

/** Older configs have `rope_theta` and `rope_scaling`; since transformers 5, `rope_parameters` holds both. */
function readRope(file: string, json: JsonObject): Pick<LlamaConfig, 'ropeTheta' | 'ropeScaling'> {
  const key = json.rope_parameters ? 'rope_parameters' : 'rope_scaling';
  const rope = json[key] ?? {};
  if (!isObject(rope)) throw new UserError(`${file}: "${key}" must be an object or null, found ${shown(rope)}.`);
  const { integer, number } = fieldsOf(file, rope, `${key}.`);
  const ropeTheta = number('rope_theta', { fallback: fieldsOf(file, json).number('rope_theta', { fallback: 10_000 }) });
  const partial = rope.partial_rotary_factor ?? json.partial_rotary_factor ?? 1;
  if (partial !== 1) throw new UserError(`${file}: "partial_rotary_factor": ${shown(partial)} is not supported.`);

  const type = rope.rope_type ?? rope.type ?? (Object.hasOwn(rope, 'factor') ? null : 'default');
  if (type === 'default') return { ropeTheta, ropeScaling: null };
  if (type === 'linear') return { ropeTheta, ropeScaling: { type, factor: number('factor') } };
  if (type !== 'llama3') {
    throw new UserError(
      `${file}: RoPE of type ${shown(type)} ("${key}") is not supported; supported are "default", "linear" and "llama3".`,
    );
  }
  const ropeScaling: Llama3Scaling = {
    type,
    factor: number('factor'),
    lowFreqFactor: number('low_freq_factor'),
    highFreqFactor: number('high_freq_factor'),
    originalMaxPositionEmbeddings: integer('original_max_position_embeddings'),
  };
  if (ropeScaling.highFreqFactor <= ropeScaling.lowFreqFactor) {
    throw new UserError(`${file}: "${key}.high_freq_factor" must be larger than "${key}.low_freq_factor".`);
  }
  return { ropeTheta, ropeScaling };
}

/** Readers of one value each. A fallback stands in for a key that is missing or null. */
function fieldsOf(file: string, json: JsonObject, prefix = '') {
  const fail = (key: string, expected: string) => {
    const found = key in json ? shown(json[key]) : 'nothing';
    return new UserError(`${file}: "${prefix}${key}" must be ${expected}, found ${found}.`);
  };
  return {
    integer(key: string, { fallback, max = 2 ** 31 - 1 }: { fallback?: number; max?: number } = {}): number {
      const value = json[key] ?? fallback;
      if (Number.isInteger(value) && (value as number) >= 1 && (value as number) <= max) return value as number;
      throw fail(key, `an integer from 1 to ${max}`);
    },
    number(key: string, { fallback }: { fallback?: number } = {}): number {
      const value = json[key] ?? fallback;
      if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
      throw fail(key, 'a positive number');
    },
    boolean(key: string, fallback: boolean): boolean {
      const value = json[key] ?? fallback;
      if (typeof value === 'boolean') return value;
      throw fail(key, 'true or false');
    },
    /** One id or a list of them; null is an empty list. */
    tokenIds(key: string, fallback: number[]): number[] {
      const value = Object.hasOwn(json, key) ? (json[key] ?? []) : fallback;
      const ids: unknown[] = Array.isArray(value) ? value : [value];
      if (ids.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) return ids as number[];
      throw fail(key, 'a token id or a list of token ids');
    },
  };
}
