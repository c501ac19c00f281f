import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { parameterShapes } from '../model/config.ts';
import { loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import type { FloatDtype } from './half_precision.ts';
import { openSafetensors, type TensorToWrite, writeSafetensors } from './safetensors.ts';

/** Lets rename() fail where a test asks for it. */
const renames = vi.hoisted(() => ({ refuse: (): boolean => false }));
vi.mock('node:fs/promises', async (original) => {
  const fs = await original<typeof import('node:fs/promises')>();
  return {
    ...fs,
    rename: (from: string, to: string) => {
      if (renames.refuse()) throw Object.assign(new Error('EPERM: not permitted'), { syscall: 'rename' });
      return fs.rename(from, to);
    },
  };
});

const fixtures = 'lib/model/fixtures';
let root: string;
let folder: string;
beforeAll(async () => {
  await tf.setBackend('cpu');
  root = await mkdtemp(join(tmpdir(), 'checkpoint-'));
});
beforeEach(async () => {
  folder = await mkdtemp(join(root, 'case-'));
});
afterAll(() => rm(root, { recursive: true }));

describe('loading', () => {
  test.each(['llama_gqa_tied', 'llama_mha_untied', 'llama3_rope_scaling', 'llama_bf16'])('%s', async (name) => {
    const { config, params, dtypes } = await loadCheckpoint(`${fixtures}/${name}`);
    const shapes = Object.entries(params).map(([name, tensor]) => [name, tensor.shape]);
    expect(shapes).toEqual(Object.entries(parameterShapes(config)));
    expect(new Set(Object.values(dtypes))).toEqual(new Set([name === 'llama_bf16' ? 'BF16' : 'F32']));
    tf.dispose(params);
  });

  test('values, from the right shard', async () => {
    const { params } = await loadCheckpoint(`${fixtures}/llama_mha_untied`);
    const shard = await openSafetensors(`${fixtures}/llama_mha_untied/model-00002-of-00002.safetensors`);
    expect(await params['model.norm.weight'].data()).toEqual(await shard.read('model.norm.weight'));
    await shard.close();
    tf.dispose(params);
  });
});

describe('saving', () => {
  test('F32 loses nothing, and writes what Python wrote', async () => {
    const source = `${fixtures}/llama_gqa_tied`;
    const { params } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params });
    tf.dispose(params);
    for (const file of ['model.safetensors', 'config.json']) {
      expect((await readFile(join(folder, file))).equals(await readFile(join(source, file)))).toBe(true);
    }
  });

  test('a Mistral stays one', async () => {
    const source = await mkdtemp(join(root, 'mistral-'));
    await cp(`${fixtures}/llama_gqa_tied`, source, { recursive: true });
    const llama = JSON.parse(await readFile(join(source, 'config.json'), 'utf8'));
    const mistral = { ...llama, architectures: ['MistralForCausalLM'], model_type: 'mistral', sliding_window: null };
    await writeFile(join(source, 'config.json'), JSON.stringify(mistral));
    const { params } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params });
    tf.dispose(params);
    expect(JSON.parse(await readFile(join(folder, 'config.json'), 'utf8'))).toEqual(mistral);
  });

  test('original dtypes come back as they were, and config.json says so', async () => {
    const source = `${fixtures}/llama_bf16`;
    const { params, dtypes } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params }, { dtype: dtypes });
    expect(
      (await readFile(join(folder, 'model.safetensors'))).equals(await readFile(`${source}/model.safetensors`)),
    ).toBe(true);
    await saveCheckpoint(folder, { source, params }, { dtype: 'F16' });
    tf.dispose(params);
    const text = await readFile(join(folder, 'config.json'), 'utf8');
    expect(JSON.parse(text).torch_dtype).toBe('float16');
    expect(text).toContain('"rope_theta": 10000.0');
    const saved = await loadCheckpoint(folder);
    expect(saved.dtypes['model.norm.weight']).toBe('F16');
    tf.dispose(saved.params);
  });

  test('shards come back as shards, with an index as Python writes it', async () => {
    const source = `${fixtures}/llama_mha_untied`;
    const { params, dtypes } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params }, { dtype: dtypes });
    const files = (await readdir(source)).filter((file) => file !== 'reference.safetensors');
    expect((await readdir(folder)).sort()).toEqual(files.sort());
    for (const file of files) {
      const [saved, original] = [await readFile(join(folder, file)), await readFile(join(source, file))];
      expect(saved.toString('latin1').trimEnd() === original.toString('latin1').trimEnd(), file).toBe(true);
    }
    await saveCheckpoint(folder, { source, params }, { dtype: 'BF16' });
    tf.dispose(params);
    const index = JSON.parse(await readFile(join(folder, 'model.safetensors.index.json'), 'utf8'));
    expect(index.metadata).toEqual({ total_size: 734_976 / 2 });
  });

  test('mixed dtypes: in the order of Python, and config.json stays', async () => {
    const source = `${fixtures}/llama_gqa_tied`;
    const { params, dtypes } = await loadCheckpoint(source);
    const names = Object.keys(dtypes).sort();
    dtypes[names[0]] = 'F16';
    dtypes[names[1]] = 'BF16';
    await saveCheckpoint(folder, { source, params }, { dtype: dtypes });
    tf.dispose(params);
    const weights = await openSafetensors(join(folder, 'model.safetensors'));
    await weights.close();
    expect([...weights.tensors.keys()]).toEqual([...names.slice(2), names[1], names[0]]);
    expect(await readFile(join(folder, 'config.json'))).toEqual(await readFile(`${source}/config.json`));
  });

  test('no trace of an earlier layout', async () => {
    const sharded = `${fixtures}/llama_mha_untied`;
    const { params } = await loadCheckpoint(sharded);
    await writeFile(join(folder, 'optimizer.safetensors'), 'kept');
    await writeFile(join(folder, 'model-00003-of-00003.safetensors'), '');
    await saveCheckpoint(folder, { source: sharded, params });
    // A source that has lost its weights; then one whose index leads elsewhere.
    const source = await mkdtemp(join(root, 'source-'));
    await cp(`${sharded}/config.json`, join(source, 'config.json'));
    await saveCheckpoint(folder, { source, params });
    expect((await readdir(folder)).sort()).toEqual(['config.json', 'model.safetensors', 'optimizer.safetensors']);
    await saveCheckpoint(folder, { source: sharded, params });
    expect(await readdir(folder)).toHaveLength(5);
    expect(await readdir(folder)).not.toContain('model.safetensors');
    await writeFile(join(source, 'model.safetensors.index.json'), '{"weight_map": {"a": "../b"}}');
    await saveCheckpoint(folder, { source, params });
    tf.dispose([params, (await loadCheckpoint(folder)).params]);
    expect((await readdir(folder)).sort()).toEqual(['config.json', 'model.safetensors', 'optimizer.safetensors']);
  });

  test('over the source itself; a failure on the way changes nothing', async () => {
    await cp(`${fixtures}/llama_mha_untied`, folder, { recursive: true });
    const contents = async () => {
      const files = (await readdir(folder)).sort();
      return Promise.all(files.map(async (file) => [file, (await readFile(join(folder, file))).toString('latin1')]));
    };
    const { params } = await loadCheckpoint(folder);
    const before = await contents();
    // While the second shard is written:
    const disposed = tf.zeros([1]);
    disposed.dispose();
    const broken = { ...params, 'model.layers.1.self_attn.v_proj.weight': disposed };
    await expect(saveCheckpoint(folder, { source: folder, params: broken })).rejects.toThrow();
    expect(await contents()).toEqual(before);
    // While files change places:
    for (const allowed of [1, 4, 7]) {
      let left = allowed;
      renames.refuse = () => left-- === 0;
      await expect(saveCheckpoint(folder, { source: folder, params })).rejects.toThrow(UserError);
      expect(await contents()).toEqual(before);
    }
    await saveCheckpoint(folder, { source: folder, params });
    tf.dispose(params);
    expect((await contents()).map(([file]) => file)).toEqual(before.map(([file]) => file));
  });

  test('nowhere, if the folder above is gone: that is not made anew', async () => {
    const source = `${fixtures}/llama_gqa_tied`;
    const { params } = await loadCheckpoint(source);
    const saved = saveCheckpoint(join(folder, 'deleted', 'checkpoint'), { source, params });
    await expect(saved).rejects.toThrow(/^cannot write .*checkpoint \(ENOENT: no such file or directory\)$/);
    tf.dispose(params);
    expect(await readdir(folder)).toEqual([]);
  });

  test('brings tokenizer and templates along, and nothing else', async () => {
    const source = await mkdtemp(join(root, 'source-'));
    await cp(`${fixtures}/llama_gqa_tied`, source, { recursive: true });
    const companions = ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja'];
    for (const file of [...companions, 'generation_config.json', 'training_state.json', 'optimizer.safetensors']) {
      await writeFile(join(source, file), '{}');
    }
    const { params } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params });
    await saveCheckpoint(folder, { source: folder, params });
    tf.dispose(params);
    const expected = [...companions, 'generation_config.json', 'config.json', 'model.safetensors'];
    expect((await readdir(folder)).sort()).toEqual(expected.sort());
  });
});

describe('refuses', () => {
  /** A copy of llama_gqa_tied with its list of tensors changed. */
  async function writeChanged(change: (tensors: TensorToWrite[]) => TensorToWrite[]) {
    await cp(`${fixtures}/llama_gqa_tied`, folder, { recursive: true });
    const original = await openSafetensors(`${fixtures}/llama_gqa_tied/model.safetensors`);
    const tensors = [...original.tensors].map(([name, { shape }]) => {
      return { name, dtype: 'F32' as const, shape, data: () => original.read(name) };
    });
    await writeSafetensors(join(folder, 'model.safetensors'), change(tensors));
    await original.close();
  }
  const extra = (name: string) => ({ name, dtype: 'F32' as const, shape: [1], data: Float32Array.of(0) });

  async function expectRefusal(message: RegExp) {
    const before = tf.memory().numTensors;
    const error = await loadCheckpoint(folder).catch((error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(folder);
    expect(tf.memory().numTensors).toBe(before);
  }

  test('a missing tensor', async () => {
    await writeChanged((tensors) => tensors.filter(({ name }) => name !== 'model.norm.weight'));
    await expectRefusal(/model.safetensors: tensor "model.norm.weight" is missing/);
  });

  test('a tensor of another shape', async () => {
    await writeChanged((tensors) =>
      tensors.map((tensor) => {
        return tensor.name === 'model.embed_tokens.weight' ? { ...tensor, shape: [64, 256] } : tensor;
      }),
    );
    await expectRefusal(/"model.embed_tokens.weight" must have the shape \[256,64\] .* found \[64,256\]/);
  });

  test('a tensor that no Llama has, but not a redundant one, which is not saved again', async () => {
    const redundant = extra('model.layers.0.self_attn.rotary_emb.inv_freq');
    await writeChanged((tensors) => [...tensors, redundant]);
    const { params } = await loadCheckpoint(folder);
    await saveCheckpoint(folder, { source: folder, params });
    tf.dispose(params);
    const saved = await readFile(join(folder, 'model.safetensors'));
    expect(saved.equals(await readFile(`${fixtures}/llama_gqa_tied/model.safetensors`))).toBe(true);
    await writeChanged((tensors) => [...tensors, extra('model.layers.0.self_attn.q_proj.bias')]);
    await expectRefusal(/"model.layers.0.self_attn.q_proj.bias" is not part of the Llama/);
  });

  test.each([Number.NaN, Infinity, -Infinity])('a weight of %d', async (value) => {
    await writeChanged((tensors) =>
      tensors.map((tensor) =>
        tensor.name === 'model.norm.weight'
          ? { ...tensor, data: Float32Array.from({ length: tensor.shape[0] }, (_, i) => (i === 3 ? value : 1)) }
          : tensor,
      ),
    );
    await expectRefusal(
      new RegExp(`model.safetensors: tensor "model.norm.weight" holds ${value}: the file is damaged`),
    );
  });

  test.each<[FloatDtype, number, RegExp]>([
    [
      'F32',
      Number.NaN,
      /^tensor "model.norm.weight" holds NaN: training has diverged, a lower --learning-rate may help$/,
    ],
    ['F32', -Infinity, /holds -Infinity: training has diverged/],
    ['F16', 65_520, /holds 65520, which F16 cannot hold$/],
    ['BF16', 3.4e38, /holds 3.39\d*e\+38, which BF16 cannot hold$/],
  ])('to save as %s a weight of %d, and leaves what is there', async (dtype, value, message) => {
    const source = `${fixtures}/llama_gqa_tied`;
    const { params } = await loadCheckpoint(source);
    await saveCheckpoint(folder, { source, params });
    const norm = await params['model.norm.weight'].data();
    params['model.norm.weight'].dispose();
    const write = (changed: number) => {
      const values = norm.map((old, i) => (i === norm.length - 1 ? changed : old));
      return saveCheckpoint(
        folder,
        { source, params: { ...params, 'model.norm.weight': tf.tensor(values) } },
        { dtype },
      );
    };
    const error = await write(value).catch((error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(message);
    const saved = await readFile(join(folder, 'model.safetensors'));
    expect(saved.equals(await readFile(join(source, 'model.safetensors')))).toBe(true);
    expect(await readdir(folder)).not.toContain('.partial');
    await write({ F32: 3.4e38, F16: 65_519, BF16: 3.389e38 }[dtype]); // the largest that it can
    tf.dispose(await loadCheckpoint(folder).then((loaded) => loaded.params));
    tf.dispose(params);
  });

  test('a truncated file', async () => {
    await cp(`${fixtures}/llama_gqa_tied`, folder, { recursive: true });
    const file = join(folder, 'model.safetensors');
    await writeFile(file, (await readFile(file)).subarray(0, 300_000));
    await expectRefusal(/model.safetensors: tensor .* truncated/);
  });

  test.each(['../model.safetensors', '/etc/x.safetensors', 'a\\b.safetensors', '..', 7])(
    'a shard at %j',
    async (file) => {
      await cp(`${fixtures}/llama_mha_untied`, folder, { recursive: true });
      const index = join(folder, 'model.safetensors.index.json');
      await writeFile(index, JSON.stringify({ weight_map: { 'model.norm.weight': file } }));
      await expectRefusal(/index.json: tensor "model.norm.weight" must be in a .safetensors file of this folder/);
    },
  );

  test('shards that are not there, or not as the index says', async () => {
    await cp(`${fixtures}/llama_mha_untied`, folder, { recursive: true });
    const [first, second] = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    await cp(join(folder, first), join(folder, second));
    await expectRefusal(/00002.safetensors: tensor ".*" is missing, which model.safetensors.index.json says/);
    await rm(join(folder, second));
    await expectRefusal(/00002.safetensors: cannot be opened/);
    await writeFile(join(folder, 'model.safetensors.index.json'), '{"weight_map": 1}');
    await expectRefusal(/"weight_map" must map/);
  });

  test('what is no checkpoint folder', async () => {
    await expectRefusal(/config.json: there is no such file; a checkpoint folder holds config.json, model.safetensors/);
    await cp(`${fixtures}/llama_bf16/config.json`, join(folder, 'config.json'));
    await expectRefusal(/no model.safetensors; a checkpoint folder holds/);
    await writeFile(join(folder, 'pytorch_model.bin'), '');
    await expectRefusal(/"pytorch_model.bin" is a pickle: load it in Python/);
    folder = join(folder, 'none');
    await expectRefusal(/there is no such folder/);
  });
});
