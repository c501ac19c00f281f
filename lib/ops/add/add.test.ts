import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, random, size } from '../comparisons.ts';

beforeAll(useBackend);

test('tf.add of one shape, of others, and of integers', async () => {
  for (const key of cases) {
    const shape = [[size(1, key)], [size(1, key), size(2, key)], [], [0, 3], [200, 1001]][key % 5];
    for (const other of [shape, [], [1]]) {
      const [a, b] = [random(shape), random(other)];
      const [x, y] = [await a.data(), await b.data()];
      const sum = tf.add(a, b);
      expect(sum.shape).toEqual(shape.length > 0 ? shape : other);
      expect(Array.from(await sum.data())).toEqual(Array.from(x, (value, i) => Math.fround(value + y[i % y.length])));
      tf.dispose([a, b, sum]);
    }
  }
  const sum = tf.add(tf.tensor1d([1, 2], 'int32'), tf.tensor1d([3, 4], 'int32'));
  expect([sum.dtype, Array.from(await sum.data())]).toEqual(['int32', [4, 6]]);
});
