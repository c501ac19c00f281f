import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import type { Model, Params } from '../model/model.ts';
import { uniform } from '../random.ts';
import { adamW, clippingFactor, createAdamW, globalNorm } from './adamw.ts';
import { accumulateGradients } from './gradients.ts';
import { completionLogProbs, microBatches, type Sequence } from './log_probs.ts';

let model: Model;
beforeAll(async () => {
  await useBackend();
  model = await loadCheckpoint('lib/model/fixtures/llama_mha_untied');
});

type WeightedRow = Sequence & { weight: number };
const rows: WeightedRow[] = [3, 8, 1, 5, 8, 2].map((length, r) => ({
  prompt: [r % 2, 9, 40 + (r % 2)],
  completion: Array.from({ length }, (_, t) => Math.floor(256 * uniform(17, r, t))),
  weight: uniform(18, r) - 0.5,
}));
const tokens = rows.reduce((sum, { completion }) => sum + completion.length, 0);

/** Some loss over log-probs and entropies, its normaliser that of all rows. */
const loss = (batch: WeightedRow[]) => (model: Model) => {
  const { logProbs, entropies } = completionLogProbs(model, batch, 0.9);
  const weights = tf.tensor2d(batch.map(({ weight }) => [weight / tokens]));
  return tf.sum(tf.mul(tf.sub(logProbs, tf.mul(entropies, 0.1)), weights)) as tf.Scalar;
};

async function relativeDifference(a: Params, b: Params): Promise<number> {
  const errors = Object.keys(b).map((name) => tf.div(tf.norm(tf.sub(a[name], b[name])), tf.norm(b[name])));
  return Math.max(...(await tf.stack(errors).data()));
}

test('any split into micro-batches has the loss and the gradient of the whole', async () => {
  const whole = await accumulateGradients(model, [loss(rows)]);
  const splits = [
    rows.map((row) => [row]),
    [rows.slice(0, 1), rows.slice(1)],
    microBatches(rows, 16),
    microBatches(rows, 9),
  ];
  for (const split of splits) {
    expect(split.length).toBeGreaterThan(1);
    const parts = await accumulateGradients(model, split.map(loss));
    expect((await parts.loss.data())[0]).toBeCloseTo((await whole.loss.data())[0], 6);
    expect(await relativeDifference(parts.gradients, whole.gradients)).toBeLessThan(1e-5);
  }
});

test('statistics are added up by name, and no tensor of them is left', async () => {
  const statistics = (batch: WeightedRow[]) => ({
    rows: tf.scalar(batch.length),
    tokens: tf.scalar(batch.reduce((sum, { completion }) => sum + completion.length, 0)),
  });
  const before = tf.memory().numTensors;
  const { statistics: sums, ...rest } = await accumulateGradients(
    model,
    microBatches(rows, 9).map((batch) => (model) => ({ loss: loss(batch)(model), statistics: statistics(batch) })),
  );
  expect(sums).toEqual({ rows: rows.length, tokens });
  tf.dispose(rest);
  expect(tf.memory().numTensors).toBe(before);
});

test('a parameter without influence gets zeros', async () => {
  const { gradients } = await accumulateGradients(model, [
    ({ params }) => tf.sum(tf.square(params['model.norm.weight'])) as tf.Scalar,
  ]);
  expect(Object.keys(gradients)).toEqual(Object.keys(model.params));
  expect(new Set(await gradients['lm_head.weight'].data())).toEqual(new Set([0]));
  expect((await gradients['model.norm.weight'].data())[0]).toBeCloseTo(
    2 * (await model.params['model.norm.weight'].data())[0],
    5,
  );
});

test('without any micro-batch loss and gradients are zero', async () => {
  const { loss, gradients } = await accumulateGradients(model, []);
  expect((await loss.data())[0]).toBe(0);
  for (const [name, gradient] of Object.entries(gradients)) {
    expect(gradient.shape).toEqual(model.params[name].shape);
    expect(new Set(await gradient.data())).toEqual(new Set([0]));
  }
  tf.dispose([loss, gradients]);
});

test('whole updates: as many tensors and as much memory after each as before, and the loss falls', async () => {
  const { config, params: initial } = await loadCheckpoint('lib/model/fixtures/llama_gqa_tied');
  let params: Params = initial;
  let state = createAdamW(params);
  const live: number[] = [];
  const bytes: number[] = [];
  const losses: number[] = [];
  for (let step = 0; step < 4; step++) {
    const sum = await accumulateGradients({ config, params }, microBatches(rows, 16).map(loss));
    losses.push((await sum.loss.data())[0]);
    const norm = globalNorm(sum.gradients);
    const gradientScale = clippingFactor((await norm.data())[0], 1);
    const options = { gradientScale, learningRate: 1e-3, weightDecay: 0.01 };
    ({ params, state } = adamW(params, sum.gradients, state, options));
    tf.dispose([sum.loss, sum.gradients, norm]);
    live.push(tf.memory().numTensors);
    bytes.push(tf.memory().numBytes);
  }
  expect(new Set(live).size).toBe(1);
  expect(new Set(bytes).size).toBe(1);
  expect(losses).toEqual(losses.toSorted((a, b) => b - a));
});
