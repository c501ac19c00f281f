import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, expectSame, random, size } from '../comparisons.ts';

beforeAll(useBackend);

test('concat, along every axis and of every type', async () => {
  for (const key of cases) {
    const [a, b, c] = [size(1, key), size(2, key), size(3, key)];
    const axis = key % 3;
    const dtype = (['float32', 'int32', 'bool'] as const)[key % 5 === 4 ? 2 : key % 2];
    const parts = [1, key % 5, 3].map((extra) => tf.cast(tf.mul(random([a, b, c].with(axis, extra)), 9), dtype));
    const joined = tf.concat(parts, axis);
    expect(joined.dtype).toBe(dtype);
    let begin = 0;
    for (const part of parts) {
      const at = [0, 0, 0].with(axis, begin);
      begin += part.shape[axis]!;
      await expectSame([tf.slice(joined, at, part.shape)], [part]);
    }
    expect(joined.shape).toEqual([a, b, c].with(axis, begin));
  }
  expect(() => tf.concat([tf.zeros([2, 3]), tf.zeros([2, 4])], 0)).toThrow();
});
