import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openSafetensors } from '../checkpoint/safetensors.ts';
import { UserError } from '../errors.ts';
import { parameterShapes, readConfig } from './config.ts';
import { ropeInverseFrequencies } from './rope.ts';

const fixtures = 'lib/model/fixtures';
const oracle = '../shared/oracles/hf/rope_inv_freq.json';
const names = ['llama_gqa_tied', 'llama_mha_untied', 'llama3_rope_scaling', 'llama_bf16'];

const mistral = { architectures: ['MistralForCausalLM'], model_type: 'mistral' };

let folder: string;
let base: Record<string, unknown>;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'config-'));
  base = JSON.parse(await readFile(`${fixtures}/llama_gqa_tied/config.json`, 'utf8'));
});
afterAll(() => rm(folder, { recursive: true }));

/** Reads the config of llama_gqa_tied with some keys changed; `undefined` removes a key. */
async function readChanged(changes: Record<string, unknown>, generation?: Record<string, unknown>) {
  await writeFile(join(folder, 'config.json'), JSON.stringify({ ...base, ...changes }));
  await rm(join(folder, 'generation_config.json'), { force: true });
  if (generation) await writeFile(join(folder, 'generation_config.json'), JSON.stringify(generation));
  return readConfig(folder);
}

test('reads config.json', async () => {
  expect(await readConfig(`${fixtures}/llama3_rope_scaling`)).toEqual({
    head: 'logits',
    vocabSize: 256,
    hiddenSize: 64,
    intermediateSize: 160,
    numLayers: 2,
    numHeads: 4,
    numKvHeads: 2,
    headDim: 32,
    rmsNormEps: 1e-5,
    ropeTheta: 500_000,
    ropeScaling: {
      type: 'llama3',
      factor: 32,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 64,
    },
    maxPositionEmbeddings: 512,
    tieWordEmbeddings: true,
    biases: { qkv: false, o: false, mlp: false },
    qkNorm: false,
    bosTokenId: 1,
    eosTokenIds: [2],
    torchDtype: 'float32',
  });
});

test('takes the keys of transformers 5', async () => {
  const old = await readConfig(`${fixtures}/llama3_rope_scaling`);
  const { rope_scaling, rope_theta, torch_dtype, ...rest } = JSON.parse(
    await readFile(`${fixtures}/llama3_rope_scaling/config.json`, 'utf8'),
  );
  const renamed = { ...rest, rope_parameters: { ...rope_scaling, rope_theta }, dtype: torch_dtype };
  await writeFile(join(folder, 'config.json'), JSON.stringify(renamed));
  expect(await readConfig(folder)).toEqual(old);
  const plain = { rope_theta: undefined, rope_scaling: undefined };
  const config = await readChanged({ ...plain, rope_parameters: { rope_type: 'default', rope_theta: 5000 } });
  expect(config).toMatchObject({ ropeTheta: 5000, ropeScaling: null });
});

test('fills in what is missing', async () => {
  const missing = { num_key_value_heads: undefined, head_dim: undefined, tie_word_embeddings: undefined };
  const config = await readChanged({ ...missing, rope_theta: undefined, torch_dtype: undefined });
  expect(config).toMatchObject({ numKvHeads: 4, headDim: 16, tieWordEmbeddings: false, ropeTheta: 10_000 });
});

// What transformers 5.18 makes of a config that lacks them: LlamaConfig(), Qwen2Config() and so on.
test.each([
  ['llama', { bosTokenId: 1, eosTokenIds: [2], maxPositionEmbeddings: 2048, numKvHeads: 64, headDim: 64 }],
  ['qwen2', { bosTokenId: null, eosTokenIds: [], maxPositionEmbeddings: 32768, numKvHeads: 32, headDim: 64 }],
  ['qwen3', { bosTokenId: null, eosTokenIds: [], maxPositionEmbeddings: 32768, numKvHeads: 32, headDim: 128 }],
  ['mistral', { bosTokenId: 1, eosTokenIds: [2], maxPositionEmbeddings: 131072, numKvHeads: 8, headDim: 64 }],
])('each family has its own defaults: %s', async (model_type, defaults) => {
  const missing = ['bos_token_id', 'eos_token_id', 'max_position_embeddings', 'num_key_value_heads', 'head_dim'];
  const config = await readChanged({
    ...Object.fromEntries(missing.map((key) => [key, undefined])),
    ...{ architectures: undefined, model_type, hidden_size: 4096, num_attention_heads: 64, sliding_window: null },
  });
  expect(config).toMatchObject(defaults);
});

test('Mistral without a sliding window is a Llama without biases', async () => {
  const config = await readChanged({ ...mistral, sliding_window: null, attention_bias: true, mlp_bias: true });
  expect(config).toEqual(await readChanged({}));
});

test('end-of-text tokens: generation_config.json before config.json, one or several', async () => {
  expect((await readChanged({ eos_token_id: 7 })).eosTokenIds).toEqual([7]);
  expect((await readChanged({ eos_token_id: [7, 8] })).eosTokenIds).toEqual([7, 8]);
  expect((await readChanged({ eos_token_id: null })).eosTokenIds).toEqual([]);
  expect((await readChanged({ eos_token_id: 7 }, { eos_token_id: [3, 4] })).eosTokenIds).toEqual([3, 4]);
  expect((await readChanged({ eos_token_id: 7 }, { temperature: 1 })).eosTokenIds).toEqual([7]);
});

test.each([
  [{}, { qkv: false, o: false, mlp: false }, false, 12],
  [{ attention_bias: true }, { qkv: true, o: true, mlp: false }, false, 12],
  [{ mlp_bias: true }, { qkv: false, o: false, mlp: true }, false, 12],
  [{ architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2' }, { qkv: true, o: false, mlp: false }, false, 12],
  [{ architectures: undefined, model_type: 'qwen3' }, { qkv: false, o: false, mlp: false }, true, 128],
])('biases, norms of heads and their size: %j', async (changes, biases, qkNorm, headDim) => {
  const config = await readChanged({ head_dim: undefined, num_attention_heads: 4, hidden_size: 48, ...changes });
  expect(config).toMatchObject({ biases, qkNorm, headDim });
  const names = Object.keys(parameterShapes(config));
  for (const [name, has] of [
    ['self_attn.q_proj.bias', biases.qkv],
    ['self_attn.o_proj.bias', biases.o],
    ['mlp.down_proj.bias', biases.mlp],
    ['self_attn.k_norm.weight', qkNorm],
  ] as const) {
    expect(names.includes(`model.layers.1.${name}`)).toBe(has);
  }
});

test('linear scaling: four times as many positions for the same turn', async () => {
  const scaled = await readChanged({ rope_scaling: { type: 'linear', factor: 4 } });
  const plain = await readChanged({ rope_scaling: null });
  const expected = ropeInverseFrequencies(plain).map((frequency) => frequency / 4);
  expect(ropeInverseFrequencies(scaled)).toEqual(expected);
});

describe('refuses', () => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [{ architectures: ['GemmaForCausalLM'] }, /architecture \["GemmaForCausalLM"\] is not supported/],
    [mistral, /sliding-window attention \("sliding_window": 4096; .*\) is not supported/],
    [{ ...mistral, sliding_window: 128 }, /sliding-window attention \("sliding_window": 128; .*\) is not supported/],
    [{ architectures: ['Qwen2ForCausalLM'] }, /"model_type": "llama" is not supported/],
    [{ architectures: ['LlamaForCausalLM'], model_type: 'qwen2' }, /"model_type": "qwen2" is not supported/],
    [{ architectures: undefined, model_type: 'gpt2' }, /architecture "gpt2"/],
    [{ use_sliding_window: true }, /sliding-window attention is not supported/],
    [{ layer_types: ['full_attention', 'sliding_attention'] }, /sliding-window attention is not supported/],
    [{ architectures: undefined, model_type: undefined }, /architecture null/],
    [{ model_type: 'gemma' }, /"gemma" is not supported/],
    [{ attention_bias: 'yes' }, /"attention_bias" must be true or false/],
    [{ mlp_bias: 1 }, /"mlp_bias" must be true or false/],
    [{ hidden_act: 'gelu' }, /"hidden_act": "gelu"/],
    [{ quantization_config: { bits: 4 } }, /quantization_config/],
    [{ rope_scaling: { type: 'dynamic', factor: 4 } }, /RoPE of type "dynamic"/],
    [{ rope_scaling: { type: 'linear' } }, /"rope_scaling.factor" must be a positive number, found nothing/],
    [{ rope_scaling: { factor: 4 } }, /RoPE of type null/],
    [{ rope_scaling: 'yarn' }, /"rope_scaling" must be an object or null, found "yarn"/],
    [{ rope_scaling: { rope_type: 'llama3', factor: 4 } }, /"rope_scaling.low_freq_factor" .* found nothing/],
    [{ partial_rotary_factor: 0.5 }, /partial_rotary_factor/],
    [{ hidden_size: undefined }, /"hidden_size" must be an integer .* found nothing/],
    [{ hidden_size: '64' }, /"hidden_size" must be an integer .* found "64"/],
    [{ vocab_size: -1 }, /"vocab_size" must be an integer from 1/],
    [{ num_hidden_layers: 1e9 }, /"num_hidden_layers"/],
    [{ num_attention_heads: 5, num_key_value_heads: undefined }, /"head_dim" must be an integer/],
    [{ num_key_value_heads: 3 }, /multiple of "num_key_value_heads" \(3\)/],
    [{ head_dim: 15 }, /even, found 15/],
    [{ rms_norm_eps: 0 }, /"rms_norm_eps" must be a positive number, found 0/],
    [{ tie_word_embeddings: 'yes' }, /"tie_word_embeddings" must be true or false/],
    [{ eos_token_id: [1, 'x'] }, /"eos_token_id"/],
  ];
  test.each(cases)('%j', async (changes, message) => {
    const error = await readChanged(changes).catch((error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(join(folder, 'config.json'));
  });

  test('a missing file and one that is not JSON', async () => {
    await expect(readConfig(join(folder, 'none'))).rejects.toThrow(
      /no such file; a checkpoint folder holds config.json/,
    );
    await writeFile(join(folder, 'config.json'), '{');
    await expect(readConfig(folder)).rejects.toThrow(/config.json: not valid JSON/);
    await writeFile(join(folder, 'config.json'), '[]');
    await expect(readConfig(folder)).rejects.toThrow(UserError);
  });
});

describe('RoPE frequencies equal those of transformers', () => {
  test.each(names)('%s', async (name) => {
    const reference = await openSafetensors(`${fixtures}/${name}/reference.safetensors`);
    const expected = await reference.read('inv_freq');
    await reference.close();
    expectRelativelyClose(ropeInverseFrequencies(await readConfig(`${fixtures}/${name}`)), expected);
  });

  test.skipIf(!existsSync(oracle))(`real models (needs ${oracle})`, async () => {
    const models: Record<string, { config: Record<string, unknown>; inv_freq: number[] }> = JSON.parse(
      await readFile(oracle, 'utf8'),
    );
    for (const name of ['llama-3.2-1B', 'llama-3.1-8B', 'llama-2-7b', 'qwen2.5-0.5b', 'linear-x4']) {
      const { config, inv_freq } = models[name];
      const { num_attention_heads, num_key_value_heads = num_attention_heads } = config;
      expectRelativelyClose(ropeInverseFrequencies(await readChanged({ ...config, num_key_value_heads })), inv_freq);
    }
  });

  function expectRelativelyClose(actual: Float32Array, expected: ArrayLike<number>) {
    expect(actual).toHaveLength(expected.length);
    for (let i = 0; i < actual.length; i++) expect(Math.abs(actual[i] / expected[i] - 1)).toBeLessThan(5e-7);
  }
});

test.each(['llama_gqa_tied', 'llama3_rope_scaling', 'llama_bf16'])('parameter shapes of %s', async (name) => {
  const weights = await openSafetensors(`${fixtures}/${name}/model.safetensors`);
  const stored = Object.fromEntries([...weights.tensors].map(([name, { shape }]) => [name, shape]));
  await weights.close();
  expect(parameterShapes(await readConfig(`${fixtures}/${name}`))).toEqual(stored);
});
