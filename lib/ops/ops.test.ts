/**
 * Every operation against its formula in plain numbers (float64): its value against the formula's, its hand-written
 * gradient against central differences of the formula. So the tolerance is that of float32 alone.
 */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../backend/test_backend.ts';
import { normals } from '../run/random.ts';
import type { Visible } from './attention/attention.ts';
import { attention } from './attention/attention.ts';
import { linear } from './linear/linear.ts';
import { moveRows } from './move_rows/move_rows.ts';
import { rmsNorm } from './rms_norm/rms_norm.ts';
import { rotaryEmbedding } from './rotary_embedding/rotary_embedding.ts';
import { swiGlu } from './swiglu/swiglu.ts';
import { tokenLogProbs } from './token_log_probs/token_log_probs.ts';

const TOLERANCE = 1e-5;

beforeAll(useBackend);

let draws = 0;
const random = (shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 7, draws++), shape);

/** Compares `op` with `formula` (flat arrays in, flat array out) at random inputs of these shapes. */
async function check(
  op: (...inputs: tf.Tensor[]) => tf.Tensor,
  formula: (...inputs: number[][]) => number[],
  shapes: number[][],
): Promise<void> {
  const inputs = shapes.map(random);
  const value = op(...inputs);
  const dy = random(value.shape);
  const gradients = tf.grads(op)(inputs, dy);
  const numbers = await Promise.all(inputs.map(async (input) => Array.from(await input.data())));
  expectClose(await value.data(), formula(...numbers));
  const weights = await dy.data();
  const loss = () => formula(...numbers).reduce((sum, y, i) => sum + y * weights[i], 0);
  const step = 1e-5;
  for (const [i, input] of numbers.entries()) {
    const differences = input.map((x, j) => {
      const at = (y: number) => {
        input[j] = y;
        return loss();
      };
      const slope = (at(x + step) - at(x - step)) / (2 * step);
      input[j] = x;
      return slope;
    });
    expect(gradients[i].shape).toEqual(shapes[i]);
    expectClose(await gradients[i].data(), differences);
  }
  tf.dispose([inputs, value, dy, gradients]);
}

function expectClose(actual: ArrayLike<number>, expected: number[]): void {
  expect(actual.length).toBe(expected.length);
  const worst = Math.max(...expected.map((x, i) => Math.abs(actual[i] - x) / Math.max(1, Math.abs(x))));
  expect(worst).toBeLessThan(TOLERANCE);
}

const range = (n: number) => Array.from({ length: n }, (_, i) => i);
const sum = (values: number[]) => values.reduce((total, x) => total + x, 0);
const dot = (a: number[], b: number[]) => sum(a.map((x, i) => x * b[i]));
const row = (x: number[], i: number, width: number) => x.slice(i * width, (i + 1) * width);

describe('rmsNorm', () => {
  test.each([
    [1, 1],
    [1, 6],
    [7, 5],
    [16, 64],
  ])('%i × %i', (n, h) =>
    check(
      (x, w) => rmsNorm(x as tf.Tensor2D, w, 0.01),
      (x, w) =>
        range(n).flatMap((i) => {
          const values = row(x, i, h);
          return values.map((value, j) => (w[j] * value) / Math.sqrt(dot(values, values) / h + 0.01));
        }),
      [[n, h], [h]],
    ),
  );
});

describe('rotaryEmbedding', () => {
  test.each([
    [1, 1, 2],
    [3, 1, 6],
    [5, 3, 10],
  ])('%i tokens, %i heads, dimension %i', (n, heads, d) => {
    const angles = range((n * d) / 2).map((i) => 1 + 0.7 * i);
    const [cos, sin] = [Math.cos, Math.sin].map((f) => tf.tensor3d(angles.map(f), [n, 1, d / 2]));
    return check(
      (x) => rotaryEmbedding(x as tf.Tensor3D, cos, sin),
      // x_i + i x_{i + D/2} is multiplied by e^{i angle}.
      (x) =>
        x.map((value, at) => {
          const i = at % d;
          const angle = angles[Math.floor(at / (heads * d)) * (d / 2) + (i % (d / 2))];
          const other = i < d / 2 ? -x[at + d / 2] : x[at - d / 2];
          return value * Math.cos(angle) + other * Math.sin(angle);
        }),
      [[n, heads, d]],
    );
  });
});

describe('linear and swiGlu', () => {
  test.each([
    [1, 1, 1],
    [3, 5, 7],
    [16, 17, 33],
  ])('linear, %i × %i → %i', (n, inputs, outputs) =>
    check(
      (x, w) => linear(x as tf.Tensor2D, w),
      (x, w) => range(n).flatMap((i) => range(outputs).map((o) => dot(row(x, i, inputs), row(w, o, inputs)))),
      [
        [n, inputs],
        [outputs, inputs],
      ],
    ),
  );

  test.each([
    [1, 1],
    [5, 7],
  ])('swiGlu, %i × %i', (n, f) =>
    check(
      (gate, up) => swiGlu(gate as tf.Tensor2D, up as tf.Tensor2D),
      (gate, up) => gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]),
      [
        [n, f],
        [n, f],
      ],
    ),
  );
});

describe('moveRows', () => {
  test.each([
    ['a permutation', { rows: 3, width: 5, index: [2, 0, 1] }],
    ['holes in the result', { rows: 2, width: 3, index: [2, 1, 2, 0, 2] }],
    ['a row that goes nowhere', { rows: 3, width: 1, index: [2, 0] }],
    ['both', { rows: 3, width: 4, index: [3, 2, 3, 0] }],
    ['one row', { rows: 1, width: 1, index: [0] }],
  ])('%s', (_, { rows, width, index }) => {
    const inverse = range(rows).map((i) => (index.includes(i) ? index.indexOf(i) : index.length));
    const rowIndex = (ids: number[], end: number) => ({ rows: tf.tensor1d(ids, 'int32'), holes: ids.includes(end) });
    return check(
      (x) => moveRows(x as tf.Tensor2D, rowIndex(index, rows), rowIndex(inverse, index.length)),
      (x) => index.flatMap((from) => (from === rows ? new Array(width).fill(0) : row(x, from, width))),
      [[rows, width]],
    );
  });
});

describe('attention', () => {
  const causal = (time: number, past: number) => ({ counts: range(time).map((t) => past + t + 1), divisor: 1 });
  /** Of each key set of `queries` queries, the last 0, 1 or 2 keys are padding. */
  const padding = (batch: number, size: number, queries: number) => ({
    counts: range(batch).map((b) => size - (b % 3)),
    divisor: queries,
  });
  type Segment = { batch: number; size: number; visible?: Visible };

  test.each<[string, { queries: number; dim: number; segments: Segment[] }]>([
    ['one query, one key', { queries: 1, dim: 1, segments: [{ batch: 1, size: 1 }] }],
    ['one segment, odd sizes', { queries: 15, dim: 7, segments: [{ batch: 5, size: 3 }] }],
    [
      'causal, two query heads a key head',
      { queries: 24, dim: 4, segments: [{ batch: 3, size: 4, visible: causal(4, 0) }] },
    ],
    ['causal with a past', { queries: 12, dim: 3, segments: [{ batch: 2, size: 5, visible: causal(3, 2) }] }],
    [
      'a prefix shared by three rows each, then one new token with its past',
      {
        queries: 12,
        dim: 5,
        segments: [
          { batch: 2, size: 5 },
          { batch: 6, size: 3 },
        ],
      },
    ],
    [
      'padded shared prefixes, then causal completions',
      {
        queries: 4 * 3 * 3,
        dim: 6,
        segments: [
          { batch: 4, size: 4, visible: padding(4, 4, 9) },
          { batch: 12, size: 3, visible: causal(3, 0) },
        ],
      },
    ],
  ])('%s', (_, { queries, dim, segments }) => {
    const shapes = segments.map(({ batch, size }) => [batch, size, dim]);
    return check(
      (q, ...rest) =>
        attention(
          q as tf.Tensor2D,
          segments.map(({ visible }, i) => {
            const [k, v] = rest.slice(2 * i) as tf.Tensor3D[];
            return { k, v, visible };
          }),
        ),
      (q, ...rest) =>
        range(queries).flatMap((m) => {
          const seen = segments.flatMap(({ batch, size, visible }, i) => {
            const b = Math.floor(m / (queries / batch));
            const count = visible ? visible.counts[Math.floor(m / visible.divisor) % visible.counts.length] : size;
            return range(count).map((s) => {
              const [k, v] = rest.slice(2 * i).map((x) => row(x, b * size + s, dim));
              return { weight: Math.exp(dot(row(q, m, dim), k) / Math.sqrt(dim)), v };
            });
          });
          const total = sum(seen.map(({ weight }) => weight));
          return range(dim).map((d) => sum(seen.map(({ weight, v }) => (weight / total) * v[d])));
        }),
      [[queries, dim], ...shapes.flatMap((shape) => [shape, shape])],
    );
  });
});

describe('tokenLogProbs', () => {
  test.each([
    { count: 1, width: 1, vocabulary: 2, temperature: 1 },
    { count: 7, width: 5, vocabulary: 11, temperature: 0.7 },
    { count: 7, width: 5, vocabulary: 11, temperature: 1.7, maxLogits: 2 * 11 },
    { count: 3, width: 3, vocabulary: 5, temperature: 1.3, maxLogits: 1 },
  ])('%o', ({ count, width, vocabulary, temperature, maxLogits }) => {
    const tokens = Int32Array.from(range(count), (i) => (3 * i + 1) % vocabulary);
    return check(
      (hidden, head) => tokenLogProbs(hidden as tf.Tensor2D, head, tokens, { temperature, maxLogits }),
      (hidden, head) => {
        const logProbs = range(count).map((i) => {
          const logits = range(vocabulary).map((v) => dot(row(hidden, i, width), row(head, v, width)) / temperature);
          const logSum = Math.log(sum(logits.map(Math.exp)));
          return logits.map((logit) => logit - logSum);
        });
        const chosen = logProbs.map((values, i) => values[tokens[i]]);
        const entropies = logProbs.map((values) => -sum(values.map((logProb) => Math.exp(logProb) * logProb)));
        return [...chosen, ...entropies];
      },
      [
        [count, width],
        [vocabulary, width],
      ],
    );
  });

  test('huge logits stay finite, and so does their gradient', async () => {
    const tokens = Int32Array.of(0, 1);
    const head = tf.tensor2d([1e4, -1e4, 0], [3, 1]);
    const op = (hidden: tf.Tensor) => tokenLogProbs(hidden as tf.Tensor2D, head, tokens);
    const hidden = tf.ones([2, 1]);
    expectClose(await op(hidden).data(), [0, -2e4, 0, 0]);
    expectClose(await tf.grad(op)(hidden).data(), [0, -2e4]);
  });
});
