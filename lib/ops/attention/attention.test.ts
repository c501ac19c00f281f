import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { uniform } from '../../random.ts';
import { sum } from '../../statistics.ts';
import {
  cases,
  compareWithFormula,
  compareWithPlain,
  dot,
  random,
  range,
  row,
  size,
  WITH_KERNELS,
} from '../comparisons.ts';
import { attention, type Visible } from './attention.ts';

beforeAll(useBackend);

describe('attention is its formula, and so is its gradient', () => {
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
    return compareWithFormula(
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

test.skipIf(!WITH_KERNELS)(
  'kernel and plain definition agree: shared and padded prefixes, causal rows, any head dimension',
  async () => {
    for (const key of cases) {
      const [prompts, group, heads, time] = [1, 2, 3, 4].map((i) => 1 + Math.floor(4 * uniform(9, key, i)));
      const [dim, length, past] = [size(1, key), size(2, key), key % 2 ? size(3, key) : 0];
      const queries = prompts * group * heads * time;
      const shapes = [...Array(2).fill([prompts, length, dim]), ...Array(2).fill([prompts * group, past + time, dim])];
      // A prompt may be empty: then its keys are padding only.
      const counts = Array.from({ length: prompts }, (_, i) => Math.floor((length + 1) * uniform(10, key, i)));
      const inPrefix = { counts, divisor: group * heads * time };
      const inRow = { counts: Array.from({ length: time }, (_, t) => past + t + 1), divisor: 1 };
      const alone = key % 4 === 0;
      const op = (q: tf.Tensor, ...rest: tf.Tensor[]) => {
        const [k, v, ownK, ownV] = [...(alone ? [q, q] : []), ...rest] as tf.Tensor3D[];
        const own = { k: ownK, v: ownV, visible: inRow };
        return attention(q as tf.Tensor2D, alone ? [own] : [{ k, v, visible: inPrefix }, own]);
      };
      await compareWithPlain(op, [random([queries, dim]), ...shapes.slice(alone ? 2 : 0).map(random)]);
    }
  },
);

test('no queries', async () => {
  const [k, v] = [random([2, 3, 4]), random([2, 3, 4])] as tf.Tensor3D[];
  const op = (q: tf.Tensor, k: tf.Tensor, v: tf.Tensor) => {
    return attention(q as tf.Tensor2D, [{ k: k as tf.Tensor3D, v: v as tf.Tensor3D }]);
  };
  expect((await op(tf.zeros([0, 4]), k, v).data()).length).toBe(0);
  if (!WITH_KERNELS) return; // the plain gradient has no shape to go by
  const gradients = tf.grads(op)([tf.zeros([0, 4]), k, v]);
  expect((await gradients[1].data()).every((x) => x === 0)).toBe(true);
});

test('numbers that are none stay none', async () => {
  const k = tf.tensor3d([[[1, Number.NaN, 2, 3, 4]]]);
  const out = attention(tf.ones([1, 5]), [{ k, v: tf.ones([1, 1, 5]) }]);
  expect((await out.data()).some(Number.isNaN)).toBe(true);
});
