/** The forward pass and its gradient against itself: cached, batched, reordered. */
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { fixtures, weightedNll, worst, worstGradient } from '../../testing/gradients.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { linear } from '../ops/linear/linear.ts';
import { uniform } from '../random.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { completionLogProbs, type Sequence } from '../training/log_probs.ts';
import { parameterShapes } from './config.ts';
import type { Row } from './layout.ts';
import { extend, keepRows, lmHead, logits, type Past, prefill } from './llama.ts';
import type { Model, Params } from './model.ts';

beforeAll(useBackend);

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
    const { loss, gradients } = await accumulateGradients(biased, [nll]);
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
    const { logProbs, entropies } = completionLogProbs(model, batch, 0.8);
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
      const { gradients: together } = await accumulateGradients(model, [nll(order)]);
      const { gradients: alone } = await accumulateGradients(
        model,
        order.map((r) => nll([r])),
      );
      expect(await worstGradient(together, (name) => alone[name].data())).toBeLessThan(1e-5);
      tf.dispose([together, alone]);
    }
  });

  test('where a row has no token, its score is exactly 0', async () => {
    const { logProbs, entropies } = completionLogProbs(model, sequences, 1);
    for (const scores of [await logProbs.array(), await entropies.array()]) {
      sequences.forEach(({ completion }, r) => {
        expect(scores[r].map((score) => score !== 0)).toEqual(scores[r].map((_, t) => t < completion.length));
      });
    }
  });
});
