import { join } from 'node:path';
import { UserError } from '../errors.ts';
import { fieldsOf, isObject, type JsonObject, readJsonObject } from '../json.ts';
import { shown } from '../text.ts';
import { type Rope, readRope } from './rope.ts';

/** What `config.json` says about a Llama, Qwen or Mistral, under the same names in camelCase (`numLayers` for `num_hidden_layers` etc.). */
export type LlamaConfig = Rope & {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  numLayers: number;
  numHeads: number;
  numKvHeads: number;
  headDim: number;
  rmsNormEps: number;
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
  head: Head;
};

/** What a model has on top: the next token's logits, or one number for a whole text, as reward models have it. */
export type Head = 'logits' | 'score';

/**
 * Reads and checks `config.json` (and the end-of-text tokens in `generation_config.json`) of a Hugging Face checkpoint:
 * Llama, Qwen2 (and 2.5), Qwen3, or Mistral without a sliding window, which is a Llama.
 * Takes the keys of older and newer versions of transformers; a key that is missing gets transformers' default for that
 * family.
 * @param folder - checkpoint folder
 * @param options.head - what the model must have on top
 * @throws {UserError} if a file is missing or malformed, or if the model has a feature that is not implemented here:
 *   better no result than a wrong one
 */
export async function readConfig(folder: string, { head = 'logits' }: { head?: Head } = {}): Promise<LlamaConfig> {
  const file = join(folder, 'config.json');
  const json = await readJsonObject(file);
  if (!json) throw new UserError(`${file}: there is no such file; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  const modelType = refuseUnsupported(file, json, head);
  const defaults = DEFAULTS[modelType];
  const { integer, number, boolean, tokenIds } = fieldsOf(file, json);

  const hiddenSize = integer('hidden_size');
  const numHeads = integer('num_attention_heads');
  const kvHeads = Object.hasOwn(json, 'num_key_value_heads') ? null : defaults.numKvHeads;
  const numKvHeads = integer('num_key_value_heads', { fallback: kvHeads ?? numHeads });
  if (numHeads % numKvHeads !== 0) {
    throw new UserError(
      `${file}: "num_attention_heads" (${numHeads}) must be a multiple of "num_key_value_heads" (${numKvHeads}).`,
    );
  }
  const headDim = integer('head_dim', { fallback: defaults.headDim ?? hiddenSize / numHeads });
  if (headDim % 2 !== 0) {
    throw new UserError(
      `${file}: the head dimension ("head_dim", or "hidden_size" / "num_attention_heads") must be even, found ${headDim}.`,
    );
  }
  const maxPositionEmbeddings = integer('max_position_embeddings', { fallback: defaults.maxPositionEmbeddings });
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
    ...readRope(file, json, { maxPositionEmbeddings }),
    maxPositionEmbeddings,
    tieWordEmbeddings: boolean('tie_word_embeddings', false),
    // Qwen2 has them without a word in its config, Mistral has none; in Llama and Qwen3 "attention_bias" means o as well.
    biases: {
      qkv: modelType === 'qwen2' || (modelType !== 'mistral' && boolean('attention_bias', false)),
      o: ['llama', 'qwen3'].includes(modelType) && boolean('attention_bias', false),
      mlp: modelType === 'llama' && boolean('mlp_bias', false),
    },
    qkNorm: modelType === 'qwen3',
    bosTokenId: tokenIds('bos_token_id', defaults.bosTokenIds)[0] ?? null,
    eosTokenIds: generationEos.length > 0 ? generationEos : tokenIds('eos_token_id', defaults.eosTokenIds),
    torchDtype: [json.torch_dtype, json.dtype].find((dtype) => typeof dtype === 'string') ?? 'float32',
    head,
  };
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
  if (config.head === 'score') shapes['score.weight'] = [1, hiddenSize];
  else if (!config.tieWordEmbeddings) shapes['lm_head.weight'] = [vocabSize, hiddenSize];
  return shapes;
}

/** For messages: what a checkpoint folder must hold. */
export const CHECKPOINT_FILES =
  'config.json, model.safetensors (or shards with model.safetensors.index.json), tokenizer.json and tokenizer_config.json';

/** The families that are computed here, and their `model_type`. */
const FAMILIES = { Llama: 'llama', Qwen2: 'qwen2', Qwen3: 'qwen3', Mistral: 'mistral' } as const;

/** How transformers calls a family with each head. */
const SUFFIXES: Record<Head, string> = { logits: 'ForCausalLM', score: 'ForSequenceClassification' };

type ModelType = (typeof FAMILIES)[keyof typeof FAMILIES];

/** What transformers takes for a key that is missing, where the families differ. Null: as the other keys have it. */
const DEFAULTS: Record<
  ModelType,
  Record<'bosTokenIds' | 'eosTokenIds', number[]> &
    Record<'maxPositionEmbeddings', number> &
    Record<'numKvHeads' | 'headDim', number | null>
> = {
  llama: { bosTokenIds: [1], eosTokenIds: [2], maxPositionEmbeddings: 2048, numKvHeads: null, headDim: null },
  qwen2: { bosTokenIds: [], eosTokenIds: [], maxPositionEmbeddings: 32768, numKvHeads: 32, headDim: null },
  qwen3: { bosTokenIds: [], eosTokenIds: [], maxPositionEmbeddings: 32768, numKvHeads: 32, headDim: 128 },
  mistral: { bosTokenIds: [1], eosTokenIds: [2], maxPositionEmbeddings: 131072, numKvHeads: 8, headDim: null },
};

/** @returns the model's type */
function refuseUnsupported(file: string, json: JsonObject, head: Head): ModelType {
  if (typeof json.experiment === 'string') {
    throw new UserError(`${file}: this is the folder of a run: name the model in it, final_model or a checkpoint.`);
  }
  const supported = Object.keys(FAMILIES).map((family) => `${family}${SUFFIXES[head]}`);
  const refuse = (what: string): never => {
    throw new UserError(
      `${file}: ${what} is not supported; supported are ${supported.join(', ')} without such options.`,
    );
  };
  const { architectures, model_type: modelType } = json;
  const types = Object.values(FAMILIES).filter((type, i) =>
    Array.isArray(architectures) ? architectures.includes(supported[i]) : !architectures && modelType === type,
  );
  if (types.length !== 1) refuse(`architecture ${shown(architectures ?? modelType ?? null)}`);
  if (modelType && modelType !== types[0]) refuse(`"model_type": ${shown(modelType)}`);
  if ((json.hidden_act ?? 'silu') !== 'silu') refuse(`"hidden_act": ${shown(json.hidden_act)}`);
  const labels = isObject(json.id2label) ? Object.keys(json.id2label).length : (json.num_labels ?? 2);
  if (head === 'score' && labels !== 1) refuse(`a score of ${shown(labels)} numbers ("id2label"), and not of one,`);
  if (json.quantization_config) refuse('a quantized checkpoint ("quantization_config")');
  const windows = Array.isArray(json.layer_types) && json.layer_types.some((type) => type !== 'full_attention');
  if (json.use_sliding_window || windows) refuse('sliding-window attention');
  const window = Object.hasOwn(json, 'sliding_window') ? json.sliding_window : 4096; // transformers' default
  if (types[0] === 'mistral' && window !== null) {
    refuse(`sliding-window attention ("sliding_window": ${shown(window)}; null is none, and 4096 if it is missing)`);
  }
  return types[0];
}
