import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, it } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { flatten, unflatten } from './flatten.ts';

beforeAll(useBackend);

it('tensors become one row of numbers, and the row tensors again, with those that it was made of gone', async () => {
  const tensors = {
    a: tf.tensor2d([
      [1, 2, 3],
      [4, 5, 6],
    ]),
    b: tf.scalar(7),
    c: tf.tensor1d([8, 9]),
  };
  const flat = await flatten(tensors);
  expect([...flat]).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9]);
  tf.dispose(tensors);
  const again = unflatten(flat, tensors);
  expect(Object.entries(again).map(([name, { shape }]) => [name, shape])).toEqual([
    ['a', [2, 3]],
    ['b', []],
    ['c', [2]],
  ]);
  expect([...(await flatten(again))]).toEqual([...flat]);
  tf.dispose(again);
  expect(await flatten({})).toHaveLength(0);
});
