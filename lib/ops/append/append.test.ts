import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, expectSame, random, size } from '../comparisons.ts';
import { append } from './append.ts';

beforeAll(useBackend);

describe.each([undefined, 0, 1000])('append is concat, of what is filled: room %s', (room) => {
  test('over random shapes, with room and without', async () => {
    for (const key of cases) {
      const [batch, length, width, time] = [1, 2, 3, 4].map((i) => size(i, key));
      const [past, x] = [random([batch, length, width]), random([batch, time, width])] as tf.Tensor3D[];
      const expected = tf.concat([past, x, x], 1);
      const first = append(past, x, { length, room });
      const second = append(first, x, { length: length + time, room }); // in the room that the first may have made
      const filled = length + 2 * time;
      expect(second.shape[1]).toBeGreaterThanOrEqual(filled);
      await expectSame([tf.slice(second, [0, 0, 0], [-1, filled, -1])], [expected]);
    }
  });
});

test('without room, the past stays as it was, whatever goes on from it', async () => {
  const x = (value: number) => tf.fill([2, 1, 3], value) as tf.Tensor3D;
  const roomy = append(x(1), x(2), { length: 1, room: 9 });
  const [a, b] = [3, 4].map((value) => append(roomy, x(value), { length: 2 }));
  const third = (tensor: tf.Tensor3D) => tf.slice(tensor, [0, 2, 0], [2, 1, 3]).data();
  expect([...(await third(a)), ...(await third(b))]).toEqual([...Array(6).fill(3), ...Array(6).fill(4)]);
});

test('without room it has a gradient', async () => {
  const [past, x] = [random([2, 3, 4]), random([2, 1, 4])] as tf.Tensor3D[];
  const f = (past: tf.Tensor, x: tf.Tensor) =>
    tf.sum(tf.square(append(past as tf.Tensor3D, x as tf.Tensor3D, { length: 3 })));
  await expectSame(tf.grads(f)([past, x]), [tf.mul(past, 2), tf.mul(x, 2)]);
});
