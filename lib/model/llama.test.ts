/** The forward pass and its gradient against transformers, and against itself: cached, batched, reordered. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { useBackend } from '../backend/test_backend.ts';
import { generate } from '../generation/generate.ts';
import { uniform } from '../run/random.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { type Sequence, scoreCompletions } from '../training/score.ts';
import { loadCheckpoint } from './checkpoint.ts';
import { parameterShapes } from './config.ts';
import type { Row } from './layout.ts';
import { extend, keepRows, lmHead, logits, type Model, type Params, type Past, prefill } from './llama.ts';
import { linear } from './ops.ts';
import { openSafetensors } from './safetensors.ts';
import { loadTokenizer } from './tokenizer.ts';

const fixtures = 'lib/model/fixtures';
const shared = '../shared';
const random = ['llama_gqa_tied', 'llama_mha_untied', 'llama3_rope_scaling', 'llama_bf16'];
/** Checkpoints of which there is no copy here: their folder is that of the oracles. */
const elsewhere = ['qwen2_bias_tied', 'qwen3_qknorm_tied'];
const pretrained = ['TinyStories-656K', 'stories260K-hf'];
const oracles = existsSync(`${shared}/oracles/hf`) ? '' : ` (skipped: there is no ${shared}/oracles)`;
const weights = existsSync(`${shared}/weights`) ? '' : ` (skipped: there is no ${shared}/weights)`;

const greedy = { temperature: 0, topK: 0, topP: 1, eosTokenIds: [], random: () => 0 };

beforeAll(useBackend);

/** Opens a reference file; matrices come back as rows. */
async function openReference(file: string) {
  const reference = await openSafetensors(file);
  const rows = <Values extends Float32Array | Int32Array>(name: string, values: Values): number[][] => {
    const width = reference.tensors.get(name)!.shape.at(-1)!;
    return Array.from({ length: values.length / width }, (_, i) =>
      Array.from(values.subarray(i * width, (i + 1) * width)),
    );
  };
  return {
    read: (name: string) => reference.read(name),
    floats: async (name: string) => rows(name, await reference.read(name)),
    ints: async (name: string) => rows(name, await reference.readInt32(name)),
    close: () => reference.close(),
  };
}
type Reference = Awaited<ReturnType<typeof openReference>>;

let model: Model;
let reference: Reference;
async function open(checkpoint: string, file: string): Promise<void> {
  model = await loadCheckpoint(checkpoint);
  reference = await openReference(file);
}
async function close(): Promise<void> {
  tf.dispose(model.params);
  await reference.close();
}

const worst = (actual: ArrayLike<number>, expected: ArrayLike<number>): number => {
  expect(actual.length).toBe(expected.length);
  return Math.max(...Array.from(expected, (x, i) => Math.abs(actual[i] - x)));
};

const logitsOf = async (tokens: number[]) => (await logits(model, tokens).array()) as number[][];

async function expectLogits(): Promise<void> {
  const ids = await reference.ints('input_ids');
  const expected = await reference.floats('logits');
  const actual = (await Promise.all(ids.map(logitsOf))).flat();
  expect(worst(actual.flat(), expected.flat())).toBeLessThan(1e-4);
}

/** Σ weight · (−log π), the weights given for every completion token. */
const weightedNll = (sequences: Sequence[], weights: number[][]) => (model: Model) => {
  const { logProbs } = scoreCompletions(model, sequences, 1);
  const time = logProbs.shape[1];
  const padded = weights.map((row) => [...row, ...new Array(time - row.length).fill(0)]);
  return tf.neg(tf.sum(tf.mul(logProbs, tf.tensor2d(padded)))) as tf.Scalar;
};

/** ‖g − reference‖ / ‖reference‖ of each parameter, the largest of them. */
async function worstGradient(gradients: Params, expected: (name: string) => Promise<ArrayLike<number>>) {
  const norm = (values: number[]) => Math.sqrt(values.reduce((sum, x) => sum + x * x, 0));
  const errors = await Promise.all(
    Object.entries(gradients).map(async ([name, gradient]) => {
      const [actual, values] = [await gradient.data(), Array.from(await expected(name))];
      expect(actual.length).toBe(values.length);
      return norm(values.map((x, i) => actual[i] - x)) / norm(values);
    }),
  );
  return Math.max(...errors);
}

/** Compares loss and gradients with the reference's, every token predicted, from an empty prefix. */
async function expectGradients(): Promise<void> {
  const ids = await reference.ints('input_ids');
  const sequences = ids.map(([first, ...rest]) => ({ prompt: [first], completion: rest }));
  const count = ids.length * (ids[0].length - 1);
  const nll = weightedNll(
    sequences,
    sequences.map(({ completion }) => completion.map(() => 1 / count)),
  );
  const { loss, gradients } = accumulateGradients(model, [nll]);
  const logProbs = (await reference.floats('token_logprobs')).flat();
  const mean = logProbs.reduce((sum, x) => sum + x, 0) / count;
  expect((await loss.data())[0]).toBeCloseTo(-mean, 5);
  expect(Object.keys(gradients)).toEqual(Object.keys(model.params));
  expect(await worstGradient(gradients, (name) => reference.read(`grad.${name}`))).toBeLessThan(1e-3);
  tf.dispose([loss, gradients]);
}

const folderOf = (name: string) => `${elsewhere.includes(name) ? `${shared}/oracles/hf` : fixtures}/${name}`;
const available = [...random, ...(oracles ? [] : elsewhere)];

describe.each(available)('%s, as transformers computes it', (name) => {
  beforeEach(() => open(folderOf(name), `${folderOf(name)}/reference.safetensors`));
  afterEach(close);

  test('logits', expectLogits);

  test('a left-padded batch gives what its rows give without padding', async () => {
    const [ids, mask] = [await reference.ints('padded.input_ids'), await reference.ints('padded.attention_mask')];
    const [expected, scores] = [
      await reference.floats('padded.logits'),
      await reference.floats('padded.token_logprobs'),
    ];
    for (const [r, row] of ids.entries()) {
      const begin = mask[r].indexOf(1);
      const real = row.slice(begin);
      const actual = await logitsOf(real);
      expect(worst(actual.flat(), expected.slice(r * row.length + begin, (r + 1) * row.length).flat())).toBeLessThan(
        1e-4,
      );
      const { logProbs } = scoreCompletions(model, [{ prompt: real.slice(0, 1), completion: real.slice(1) }], 1);
      expect(worst(await logProbs.data(), scores[r].slice(begin))).toBeLessThan(1e-4);
    }
  });

  // The closest call of any step is 8.7e-4, well above what two implementations differ by.
  test('greedy decoding, alone and in a batch of prompts of unequal length', async () => {
    const [prompts, mask] = [await reference.ints('greedy.prompt_ids'), await reference.ints('greedy.attention_mask')];
    const outputs = await reference.ints('greedy.output_ids');
    const real = prompts.map((prompt, r) => prompt.slice(mask[r].indexOf(1)));
    const maxNewTokens = outputs[0].length - prompts[0].length;
    const batch = await generate(model, real, 1, { ...greedy, maxNewTokens });
    expect(batch.map(({ tokens }) => tokens)).toEqual(outputs.map((output) => output.slice(prompts[0].length)));
    const alone = await generate(model, real.slice(0, 1), 1, { ...greedy, maxNewTokens });
    expect(alone[0].tokens).toEqual((await reference.ints('greedy1.output_ids'))[0].slice(prompts[0].length));
  });
});

/** Checkpoints whose fixture has the gradients; the others' are in the oracles. */
const bundled = { grad: ['llama_gqa_tied', 'llama_mha_untied'], grad_masked: ['llama_gqa_tied'] };
describe.each(available)('gradient of every parameter, %s, as transformers computes it', (name) => {
  const source = (kind: keyof typeof bundled) =>
    bundled[kind].includes(name)
      ? { skipped: '', file: `${fixtures}/${name}/reference.safetensors` }
      : { skipped: oracles, file: `${shared}/oracles/hf/${name}/reference.safetensors` };
  afterEach(close);

  const { grad, grad_masked } = { grad: source('grad'), grad_masked: source('grad_masked') };
  describe.skipIf(grad.skipped)(`mean over all tokens${grad.skipped}`, () => {
    test.each([false, true])('from an empty prefix, gradient checkpointing: %s', async (gradientCheckpointing) => {
      await open(folderOf(name), grad.file);
      model = { ...model, gradientCheckpointing };
      await expectGradients();
    });
  });

  describe.skipIf(grad_masked.skipped)(`mean over each completion, then over completions${grad_masked.skipped}`, () => {
    test.each([false, true])(
      'of unequal length, behind their prompts, checkpointing: %s',
      async (gradientCheckpointing) => {
        await open(folderOf(name), grad_masked.file);
        model = { ...model, gradientCheckpointing };
        const [ids, mask] = [await reference.ints('input_ids'), await reference.floats('mask')];
        const sequences = ids.map((row, r) => {
          const begin = mask[r].indexOf(1) + 1; // mask t is that of token t + 1
          return { prompt: row.slice(0, begin), completion: row.slice(begin) };
        });
        const nll = weightedNll(
          sequences,
          sequences.map(({ completion }) => completion.map(() => 1 / completion.length / sequences.length)),
        );
        const { loss, gradients } = accumulateGradients(model, [nll]);
        expect(worst(await loss.data(), await reference.read('masked_loss'))).toBeLessThan(1e-5);
        expect(await worstGradient(gradients, (name) => reference.read(`grad_masked.${name}`))).toBeLessThan(1e-3);
        tf.dispose([loss, gradients]);
      },
    );
  });
});

describe.skipIf(weights)(`pretrained models${weights}`, () => {
  describe.each(pretrained)('%s, as transformers computes it', (name) => {
    const folder = `${shared}/weights/${name}`;
    beforeEach(() => open(folder, `${folder}/${name}.reference.safetensors`));
    afterEach(close);

    test('logits', expectLogits);
    test('gradient of every parameter', expectGradients);

    test('greedy stories', async () => {
      type Story = { prompt: string; prompt_ids: number[]; output_ids: number[]; text: string };
      const { greedy: stories } = JSON.parse(await readFile(`${folder}/${name}.reference.json`, 'utf8')) as {
        greedy: Story[];
      };
      const tokenizer = await loadTokenizer(folder);
      const prompts = stories.map(({ prompt }) => tokenizer.encode(prompt));
      expect(prompts).toEqual(stories.map((story) => story.prompt_ids));
      const maxNewTokens = stories[0].output_ids.length - stories[0].prompt_ids.length;
      const completions = await generate(model, prompts, 1, { ...greedy, maxNewTokens });
      const outputs = completions.map(({ tokens }, i) => [...prompts[i], ...tokens]);
      expect(outputs).toEqual(stories.map((story) => story.output_ids));
      const texts = outputs.map((ids) => tokenizer.decode(ids, { skipSpecialTokens: true }));
      expect(texts).toEqual(stories.map((story) => story.text));
    });
  });
});

describe('biases of all projections (a Llama with "attention_bias" and "mlp_bias")', () => {
  const sequences = [{ prompt: [3, 8, 41], completion: [7, 90, 12, 200] }];
  const nll = weightedNll(sequences, [[1, 1, 1, 1]]);
  let biased: Model;
  beforeAll(async () => {
    const { config, params } = await loadCheckpoint(`${fixtures}/llama_gqa_tied`);
    const withBiases = { ...config, biases: { qkv: true, o: true, mlp: true } };
    const added = Object.entries(parameterShapes(withBiases)).map(([name, [size]], i) => {
      const values = Float32Array.from({ length: size }, (_, j) => 0.2 * uniform(3, i, j) - 0.1);
      return [name, params[name] ?? tf.tensor1d(values)];
    });
    biased = { config: withBiases, params: Object.fromEntries(added) };
  });
  afterAll(() => void tf.dispose(biased.params));

  const lossOf = async (model: Model): Promise<number> => {
    const loss = tf.tidy(() => nll(model));
    const [value] = await loss.data();
    loss.dispose();
    return value;
  };
  const lossWith = async (change: (name: string, values: Float32Array) => void): Promise<number> => {
    const changed: Params = { ...biased.params };
    const names = Object.keys(changed).filter((name) => name.endsWith('.bias'));
    for (const name of names) {
      const values = Float32Array.from(await biased.params[name].data());
      change(name, values);
      changed[name] = tf.tensor1d(values);
    }
    const value = await lossOf({ config: biased.config, params: changed });
    for (const name of names) changed[name].dispose();
    return value;
  };

  test('of zero change nothing', async () => {
    const without = { ...biased.config, biases: { qkv: false, o: false, mlp: false } };
    const names = Object.keys(parameterShapes(without));
    const plain = { config: without, params: Object.fromEntries(names.map((name) => [name, biased.params[name]])) };
    const expected = await lossOf(plain);
    expect(await lossWith((_, values) => void values.fill(0))).toBeCloseTo(expected, 4);
    expect(Math.abs((await lossWith(() => {})) - expected)).toBeGreaterThan(0.01);
  });

  test('have the gradients that finite differences give', async () => {
    const { loss, gradients } = accumulateGradients(biased, [nll]);
    const step = 0.02;
    for (const projection of ['self_attn.q', 'self_attn.v', 'self_attn.o', 'mlp.gate', 'mlp.up', 'mlp.down']) {
      const bias = `model.layers.0.${projection}_proj.bias`;
      const at = (sign: number) =>
        lossWith((name, values) => {
          if (name === bias) values[1] += sign * step;
        });
      const slope = ((await at(1)) - (await at(-1))) / (2 * step);
      expect(Math.abs((await gradients[bias].data())[1] - slope), bias).toBeLessThan(2e-3 + 0.02 * Math.abs(slope));
    }
    tf.dispose([loss, gradients]);
  });
});

describe('one forward pass for everything', () => {
  let model: Model;
  beforeAll(async () => {
    model = await loadCheckpoint(`${fixtures}/llama_gqa_tied`);
  });

  const tokens = (length: number, ...key: number[]) =>
    Array.from({ length }, (_, i) => Math.floor(256 * uniform(3, ...key, i)));
  // The second prompt leaves an empty prefix: its only token is fed by the rows themselves.
  const prompts = [6, 1, 3].map((length, p) => tokens(length, p));
  const sequences: Sequence[] = [
    [2, 4],
    [1, 7],
    [0, 1],
    [2, 6],
    [0, 5],
    [1, 2],
    [2, 7],
  ].map(([p, length], r) => ({ prompt: prompts[p], completion: tokens(length, 10 + r) }));

  /** Hidden states → logits of one row, compared with the plain call on the whole sequence. */
  async function expectFull(row: number, position: number, actual: number[]): Promise<void> {
    const { prompt, completion } = sequences[row];
    const full = (await logits(model, [...prompt, ...completion]).array()) as number[][];
    expect(worst(actual, full[prompt.length + position])).toBeLessThan(2e-5);
  }

  test('cached decoding, rows leaving as they end, equals the full forward', async () => {
    let prefix = prefill(
      model,
      prompts.map((prompt) => prompt.slice(0, -1)),
    );
    const order = sequences.map(({ prompt }) => prompts.indexOf(prompt));
    let rows: Row[] = order.map((prompt) => ({ prompt, length: 1 }));
    let past: Past | undefined;
    let alive = [...sequences.keys()];
    for (let t = 0; alive.length > 0; t++) {
      const inputs = alive.map((r) => [sequences[r].prompt.at(-1)!, ...sequences[r].completion][t]);
      const { hidden, own } = extend(model, prefix, past, { rows, tokens: inputs });
      const actual = (await linear(hidden, lmHead(model)).array()) as number[][];
      for (const [i, r] of alive.entries()) await expectFull(r, t - 1, actual[i]);
      const keep = [...alive.keys()].filter((i) => t < sequences[alive[i]].completion.length);
      alive = keep.map((i) => alive[i]);
      if (alive.length > 0) ({ prefix, past, rows } = keepRows(model, prefix, own, { rows, keep }));
    }
  });

  test('several tokens at once behind a past equal the full forward', async () => {
    const rows = [0, 1, 0].map((prompt) => ({ prompt, length: 3 }));
    const members = [3, 1, 6];
    const prefix = prefill(model, [prompts[2].slice(0, -1), prompts[1].slice(0, -1)]);
    const inputs = members.map((r) => [sequences[r].prompt.at(-1)!, ...sequences[r].completion]);
    const first = extend(model, prefix, undefined, { rows, tokens: inputs.flatMap((ids) => ids.slice(0, 3)) });
    const second = extend(model, prefix, first.own, { rows, tokens: inputs.flatMap((ids) => ids.slice(3, 6)) });
    const actual = (await linear(second.hidden, lmHead(model)).array()) as number[][];
    for (const [i, logits] of actual.entries()) await expectFull(members[Math.floor(i / 3)], 2 + (i % 3), logits);
  });

  const scoresOf = async (batch: Sequence[]) => {
    const { logProbs, entropies } = scoreCompletions(model, batch, 0.8);
    const [a, b] = [await logProbs.array(), await entropies.array()];
    return batch.map(({ completion }, r) => [...a[r].slice(0, completion.length), ...b[r].slice(0, completion.length)]);
  };
  const orders = [
    [0, 1, 2, 3, 4, 5, 6],
    [6, 4, 2, 0, 1, 3, 5],
    [5, 2],
  ];

  test('neither padding nor companions nor order change what a row scores', async () => {
    const alone = await Promise.all(sequences.map(async (sequence) => (await scoresOf([sequence]))[0]));
    for (const order of orders) {
      const scores = await scoresOf(order.map((r) => sequences[r]));
      order.forEach((r, i) => void expect(worst(scores[i], alone[r])).toBeLessThan(1e-5));
    }
  });

  test('… nor its gradient: the batch’s is the sum of those of its rows alone', async () => {
    const weights = sequences.map(({ completion }, r) => completion.map((_, t) => Math.sin(1 + 3 * r + t)));
    const nll = (order: number[]) =>
      weightedNll(
        order.map((r) => sequences[r]),
        order.map((r) => weights[r]),
      );
    for (const order of orders) {
      const { gradients: together } = accumulateGradients(model, [nll(order)]);
      const { gradients: alone } = accumulateGradients(
        model,
        order.map((r) => nll([r])),
      );
      expect(await worstGradient(together, (name) => alone[name].data())).toBeLessThan(1e-5);
      tf.dispose([together, alone]);
    }
  });

  test('where a row has no token, its score is exactly 0', async () => {
    const { logProbs, entropies } = scoreCompletions(model, sequences, 1);
    for (const scores of [await logProbs.array(), await entropies.array()]) {
      sequences.forEach(({ completion }, r) => {
        expect(scores[r].map((score) => score !== 0)).toEqual(scores[r].map((_, t) => t < completion.length));
      });
    }
  });
});
