import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { type Checkpoint, loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { readLora, writeLora } from '../checkpoint/lora_files.ts';
import { loadPretrained } from '../checkpoint/pretrained.ts';
import { openSafetensors, writeSafetensors } from '../checkpoint/safetensors.ts';
import { UserError } from '../errors.ts';
import { createTrainingState, type StateOptions } from '../run/training_state.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { completionLogProbs } from '../training/log_probs.ts';
import { optimizerStep } from '../training/optimizer_step.ts';
import { logits } from './llama.ts';
import { createLora, LORA_TARGETS, mergeLora, withMergedLora } from './lora.ts';
import { disposeModel, type Model, trainable } from './model.ts';

/** What PEFT 0.21 computes with an adapter on all seven projections of `llama_gqa_tied`, from random numbers. */
const ADAPTER = 'lib/model/fixtures/lora_llama_gqa_tied';
const BASE = 'lib/model/fixtures/llama_gqa_tied';
/** The same with the merged weights. */
const ORACLE = '../shared/oracles/grpo/lora_llama_gqa_tied';
const skipped = existsSync(ORACLE) ? '' : ` (skipped: there is no ${ORACLE})`;

const temp = mkdtempSync(join(tmpdir(), 'grpo-lora-'));
let base: Checkpoint;
beforeAll(async () => {
  await useBackend();
  base = await loadCheckpoint(BASE);
});
afterAll(() => {
  disposeModel(base);
  rmSync(temp, { recursive: true });
});

const settings = () => JSON.parse(readFileSync(join(ADAPTER, 'adapter_config.json'), 'utf8'));
const sequencesOf = (ids: number[][]) => ids.map(([first, ...rest]) => ({ prompt: [first], completion: rest }));
const meanNll = (ids: number[][]) => (model: Model) =>
  tf.neg(tf.mean(completionLogProbs(model, sequencesOf(ids), 1).logProbs)) as tf.Scalar;
const norm = (values: number[]) => Math.hypot(...values);
const distance = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  norm(Array.from(a, (x, i) => x - b[i])) / norm(Array.from(b));

describe('an adapter that PEFT has written', () => {
  let model: Model;
  let reference: Awaited<ReturnType<typeof openSafetensors>>;
  let ids: number[][];
  beforeEach(async () => {
    model = { ...base, lora: await readLora(ADAPTER, base.config) };
    reference = await openSafetensors(join(ADAPTER, 'reference.safetensors'));
    const [flat, [rows, width]] = [await reference.readInt32('input_ids'), reference.tensors.get('input_ids')!.shape];
    ids = Array.from({ length: rows }, (_, r) => Array.from(flat.subarray(r * width, (r + 1) * width)));
  });
  afterEach(async () => {
    tf.dispose(model.lora!.params);
    await reference.close();
  });

  test('logits', async () => {
    const expected = await reference.read('logits');
    const actual = (await Promise.all(ids.map(async (row) => Array.from(await logits(model, row).data())))).flat();
    actual.forEach((x, i) => void expect(Math.abs(x - expected[i])).toBeLessThan(1e-4));
  });

  test.each([false, true])('gradients, of the adapter alone; gradient checkpointing: %s', async (checkpointing) => {
    const { loss, gradients } = await accumulateGradients({ ...model, gradientCheckpointing: checkpointing }, [
      meanNll(ids),
    ]);
    const scores = await reference.read('token_logprobs');
    expect((await loss.data())[0]).toBeCloseTo(-scores.reduce((sum, x) => sum + x, 0) / scores.length, 5);
    expect(Object.keys(gradients)).toEqual(Object.keys(model.lora!.params));
    for (const [name, gradient] of Object.entries(gradients)) {
      expect(distance(await gradient.data(), await reference.read(`grad.${name}`)), name).toBeLessThan(1e-3);
    }
    tf.dispose([loss, gradients]);
  });

  /** The model merged with its adapter, from copies of its parameters. */
  const merge = () =>
    mergeLora({
      ...model,
      params: Object.fromEntries(Object.entries(base.params).map(([name, x]) => [name, tf.clone(x)])),
    });

  test('merged into the weights, it gives the same logits, and no second copy is left', async () => {
    const before = tf.memory().numTensors;
    const merged = merge();
    expect(tf.memory().numTensors).toBe(before + Object.keys(merged).length);
    const alone = await logits({ config: base.config, params: merged }, ids[0]).data();
    expect(distance(alone, await logits(model, ids[0]).data())).toBeLessThan(1e-6);
    tf.dispose(merged);
  });

  test('merged for the time of sampling, it gives the same logits, and leaves nothing behind, also after an error', async () => {
    const before = tf.memory().numTensors;
    const expected = await logits(model, ids[0]).data();
    const actual = await withMergedLora(model, async (merged) => {
      expect(merged.lora).toBeUndefined();
      return logits(merged, ids[0]).data();
    });
    expect(distance(actual, expected)).toBeLessThan(1e-5);
    await expect(withMergedLora(model, () => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(await withMergedLora(base, async (same) => same === base)).toBe(true);
    expect(tf.memory().numTensors).toBe(before + 2); // the logits
  });

  test('is not merged where there is no room for that', async () => {
    const large = { ...model.params['model.embed_tokens.weight'], size: 2 ** 30 } as tf.Tensor;
    const crowded = { ...model, params: { ...model.params, 'model.embed_tokens.weight': large } };
    const isWasm = tf.getBackend() === 'wasm';
    expect(await withMergedLora(crowded, async (same) => same === crowded)).toBe(isWasm);
  });

  test.skipIf(skipped)(`merged weights${skipped}`, async () => {
    const whole = await openSafetensors(join(ORACLE, 'reference.safetensors'));
    const merged = merge();
    for (const [name, weight] of Object.entries(merged)) {
      expect(distance(await weight.data(), await whole.read(`merged.${name}`)), name).toBeLessThan(1e-6);
    }
    tf.dispose(merged);
    await whole.close();
  });

  test('is written again as it was: names, shapes, bytes, settings', async () => {
    const folder = join(temp, 'again');
    await writeLora(folder, model.lora!);
    expect(JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'))).toEqual(settings());
    const [before, after] = [ADAPTER, folder].map((at) => readFileSync(join(at, 'adapter_model.safetensors')));
    expect(after.equals(before)).toBe(true);
  });
});

describe('a new adapter', () => {
  const create = (options = {}) =>
    createLora(base.config, { rank: 4, alpha: 8, targets: [...LORA_TARGETS], seed: 0, base: 'owner/name', ...options });

  test('changes nothing yet: the logits are those of the model, to the bit', async () => {
    const lora = create();
    const [with_, without] = [await logits({ ...base, lora }, [3, 1, 4]).data(), await logits(base, [3, 1, 4]).data()];
    expect(with_).toEqual(without);
    tf.dispose(lora.params);
  });

  test('A fills U(−1/√in, 1/√in), as the seed says, and B is 0', async () => {
    const [lora, same, other] = [create(), create(), create({ seed: 1 })];
    for (const [name, param] of Object.entries(lora.params)) {
      const values = await param.data();
      if (name.includes('lora_B')) {
        expect(new Set(values)).toEqual(new Set([0]));
        continue;
      }
      const bound = 1 / Math.sqrt(param.shape[1]!);
      expect(Math.max(...values)).toBeLessThanOrEqual(bound);
      expect(Math.max(...values)).toBeGreaterThan(0.9 * bound);
      expect(Math.min(...values)).toBeLessThan(-0.9 * bound);
      expect(await same.params[name].data()).toEqual(values);
      expect(await other.params[name].data()).not.toEqual(values);
    }
    tf.dispose([lora.params, same.params, other.params]);
  });

  test('only the named projections get one', () => {
    const lora = create({ targets: ['q_proj', 'down_proj'] });
    const modules = new Set(Object.keys(lora.params).map((name) => name.split('.').at(-3)));
    expect(modules).toEqual(new Set(['q_proj', 'down_proj']));
    expect(Object.keys(lora.params)).toHaveLength(2 * 2 * base.config.numLayers);
    tf.dispose(lora.params);
  });

  test('training changes it and nothing else, holds no other gradient, and leaks nothing', async () => {
    const before = await Promise.all(
      Object.values(base.params).map(async (param) => Float32Array.from(await param.data())),
    );
    const state = await createTrainingState(base, {}, { loraRank: 4, seed: 1 });
    expect(Object.keys(state.optimizer.m)).toEqual(Object.keys(trainable(state.model)));
    const ids = [
      [1, 5, 9, 20, 11],
      [1, 7, 7, 7],
    ];
    const sizes: number[][] = [];
    const losses: number[] = [];
    for (let step = 0; step < 4; step++) {
      const gradient = await accumulateGradients(state.model, [meanNll(ids)]);
      const { loss } = await optimizerStep(state, gradient, { learningRate: 0.01, weightDecay: 0, maxGradNorm: 0 });
      losses.push(loss);
      sizes.push([tf.memory().numTensors, tf.memory().numBytes]);
    }
    expect(sizes).toEqual(sizes.map(() => sizes[0]));
    expect(losses).toEqual(losses.toSorted((a, b) => b - a));
    for (const [i, param] of Object.values(base.params).entries()) expect(await param.data()).toEqual(before[i]);
    disposeModel(state.model);
    tf.dispose([state.optimizer.m, state.optimizer.v]);
  });

  test('its folder is a model: the base that it names, with it on top', async () => {
    const lora = create({ base: BASE });
    await writeLora(join(temp, 'model'), lora);
    const loaded = await loadPretrained(join(temp, 'model'));
    expect(loaded.folder).toMatch(/llama_gqa_tied$/);
    expect(Object.keys(loaded.lora!.params)).toEqual(Object.keys(lora.params));
    expect(loaded.lora!.scale).toBe(2);
    const live = tf.memory().numTensors;
    const others: [StateOptions, RegExp][] = [
      [{ loraRank: 8 }, /^--lora-rank is 8, but .* made for 4: .* train a new one with --model-name /],
      [{ loraRank: 4, loraAlpha: 1 }, /^--lora-alpha is 1, but .* made for 8/],
      [{ loraTarget: ['q_proj'] }, /^--lora-target is "q_proj", but/],
    ];
    for (const [options, message] of others) {
      await expect(createTrainingState(loaded, {}, options)).rejects.toThrow(message);
    }
    expect(tf.memory().numTensors).toBe(live);
    const state = await createTrainingState(loaded, {});
    expect(Object.keys(trainable(state.model))).toEqual(Object.keys(lora.params));
    for (const model of [loaded, state.model]) disposeModel(model);
    tf.dispose([lora.params, state.optimizer.m, state.optimizer.v]);
  });
});

test.each<StateOptions>([{ loraAlpha: 8 }, { loraTarget: ['q_proj'] }, { mergeAdapter: true }])(
  'options of an adapter are refused where there is none: %o',
  async (options) => {
    await expect(createTrainingState(base, {}, options)).rejects.toThrow(/is about an adapter, .* pass --lora-rank/);
  },
);

test('rank-stabilised scaling divides by √r', async () => {
  const folder = await write('rslora', { ...settings(), use_rslora: true });
  const lora = await readLora(folder, base.config);
  expect(lora.scale).toBeCloseTo(16 / Math.sqrt(8));
  tf.dispose(lora.params);
});

test.each<object>([
  { init_lora_weights: false },
  { init_lora_weights: 'gaussian' },
  { init_lora_weights: 'orthogonal' },
  { init_lora_weights: 'eva', eva_config: { rho: 2 } },
  { lora_dropout: 0.1, loftq_config: { loftq_bits: 4 }, qalora_group_size: 32 },
  { use_new_idea: false, new_pattern: {}, new_modules: [], new_config: null },
])('%o leaves the base as it is, and the adapter too', async (changes) => {
  const [lora, original] = [
    await readLora(await write('same', { ...settings(), ...changes }), base.config),
    await readLora(ADAPTER, base.config),
  ];
  const [name] = Object.keys(original.params);
  expect(lora.scale).toBe(2);
  expect(await lora.params[name].data()).toEqual(await original.params[name].data());
  tf.dispose([lora.params, original.params]);
});

describe('is refused with one sentence, and leaves no tensor behind', () => {
  test.each<[string, object, RegExp]>([
    ['another method', { peft_type: 'IA3' }, /"peft_type" must be "LORA", found "IA3"/],
    ['DoRA', { use_dora: true }, /"use_dora": true is not supported/],
    ['trained biases', { bias: 'all' }, /"bias": "all" is not supported/],
    ['whole modules', { modules_to_save: ['lm_head'] }, /"modules_to_save": \["lm_head"\] is not supported/],
    ['ranks of their own', { rank_pattern: { q_proj: 4 } }, /"rank_pattern"/],
    [
      'weights that it was started from',
      { init_lora_weights: 'pissa' },
      /"init_lora_weights": "pissa" is not supported/,
    ],
    ['a frozen half', { init_lora_weights: 'mica' }, /"init_lora_weights": "mica" is not supported/],
    ['a scale between yes and no', { use_rslora: 1 }, /"use_rslora": 1 is not supported/],
    ['a setting of tomorrow', { use_new_idea: true }, /"use_new_idea": true is not supported/],
    ['a number that nobody knows', { 'x\ny': 0 }, /"x\\ny": 0 is not supported/],
    ['nesting without end', { peft_type: deep }, /"peft_type" must be "LORA", found \[{120}…/],
    ['no rank', { r: null }, /"r" must be a positive integer, found null/],
    ['a rank that is not a number', { r: '8' }, /"r" must be a positive integer, found "8"/],
    ['no alpha', { lora_alpha: null }, /"lora_alpha" must be a number/],
    ['an alpha that switches it off', { lora_alpha: 0 }, /"lora_alpha" must be a number, and not 0, .* found 0/],
    ['an alpha that is 0 as a float32', { lora_alpha: 1e-320 }, /"lora_alpha" must be a number, and not 0/],
    ['an alpha that is no float32', { lora_alpha: 1e300 }, /"lora_alpha" must be a number, and not 0/],
    ['another rank than that of the tensors', { r: 4 }, /must have the shape \[4,/],
  ])('%s', async (name, changes, message) => {
    await expectRefusal(await write(name, { ...settings(), ...changes }), message);
  });

  test('any setting of any other type: refused, or of no consequence', async () => {
    const keys = Object.keys(settings());
    const values = [null, true, -1, 1e308, 'x', '\n', [], {}, [[1]], { a: [] }];
    for (const key of keys) {
      for (const value of values) {
        const folder = await write('typed', { ...settings(), [key]: value });
        const lora = await readLora(folder, base.config).catch((error: Error) => error);
        if (lora instanceof Error) {
          expect(lora, key).toBeInstanceOf(UserError);
          expect(lora.message, key).not.toContain('\n');
        } else {
          expect(lora.scale, key).toSatisfy(Number.isFinite);
          tf.dispose(lora.params);
        }
      }
    }
  });

  const tensors: [string, TensorChange, RegExp][] = [
    ['a matrix without the other', (all) => all.slice(1), /is there without its lora_A/],
    [
      'a tensor of no projection',
      ([first, ...rest]) => [{ ...first, name: 'base_model.model.x' }, ...rest],
      /belongs to no projection/,
    ],
    ['no tensors', () => [], /there is no tensor in it/],
    [
      'a matrix of NaN',
      ([first, ...rest]) => [
        { ...first, data: async (begin, end) => new Float32Array(end - begin).fill(NaN) },
        ...rest,
      ],
      /adapter_model.safetensors: tensor "base_model.*lora_[AB].weight" holds NaN/,
    ],
  ];
  test.each(tensors)('%s', async (name, change, message) => {
    await expectRefusal(await write(name, settings(), change), message);
  });

  test('no files', async () => {
    await expectRefusal(join(temp, 'nowhere'), /there is no adapter_config.json/);
    const bare = await write('bare', settings());
    rmSync(join(bare, 'adapter_model.safetensors'));
    await expectRefusal(bare, /bare: there is adapter_config.json, but not adapter_model.safetensors/);
  });
});

/** Deeper than JSON.stringify can follow. */
const deep = JSON.parse(`${'['.repeat(2000)}${']'.repeat(2000)}`);

async function expectRefusal(folder: string, message: RegExp): Promise<void> {
  const before = tf.memory().numTensors;
  const error = await readLora(folder, base.config).catch((error: Error) => error);
  expect(error).toBeInstanceOf(UserError);
  expect((error as Error).message).toMatch(message);
  expect((error as Error).message).not.toContain('\n');
  expect(tf.memory().numTensors).toBe(before);
}

type Written = Parameters<typeof writeSafetensors>[1];
type TensorChange = (tensors: Written) => Written;

/** The fixture's adapter with other settings, or other tensors. */
async function write(name: string, changed: object, change: TensorChange = (all) => all): Promise<string> {
  const folder = join(temp, name);
  const lora = await readLora(ADAPTER, base.config);
  await writeLora(folder, lora);
  tf.dispose(lora.params);
  writeFileSync(join(folder, 'adapter_config.json'), JSON.stringify(changed));
  const file = await openSafetensors(join(ADAPTER, 'adapter_model.safetensors'));
  const dtype = 'F32' as const;
  const all = [...file.tensors].map(([name, { shape }]) => ({ name, dtype, shape, data: () => file.read(name) }));
  await writeSafetensors(join(folder, 'adapter_model.safetensors'), change(all), { format: 'pt' });
  await file.close();
  return folder;
}
