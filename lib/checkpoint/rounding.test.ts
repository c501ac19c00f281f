import * as tf from '@tensorflow/tfjs';
import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { loadCheckpoint } from './checkpoint.ts';
import { roundingLoss } from './rounding.ts';

const SOURCE = 'lib/model/fixtures/llama_bf16';

beforeAll(useBackend);

/** The first value of a tensor, and the tensor with another first value. */
async function changed(tensor: tf.Tensor, change: (x: number) => number): Promise<[number, tf.Tensor]> {
  const values = Float32Array.from(await tensor.data());
  const [first] = values;
  values[0] = change(first);
  return [first, tf.tensor(values, tensor.shape)];
}

test('a change below half of the last bit is lost, one that bfloat16 can hold is not', async () => {
  const { params } = await loadCheckpoint(SOURCE);
  const [q, k] = ['model.layers.0.self_attn.q_proj.weight', 'model.layers.1.self_attn.k_proj.weight'];
  const [x, lost] = await changed(params[q], (x) => x * (1 + 2 ** -10));
  const [y, kept] = await changed(params[k], (y) => -y);
  const loss = (trained: tf.TensorContainerObject, dtype: 'BF16' | 'F32' = 'BF16') =>
    roundingLoss({ ...params, ...trained } as typeof params, { source: SOURCE, dtype });
  const expected = Math.abs(x * 2 ** -10) / Math.hypot(x * 2 ** -10, 2 * y);

  expect(await loss({})).toBe(0);
  expect(await loss({ [q]: lost })).toBe(1);
  expect(await loss({ [k]: kept })).toBe(0);
  expect(await loss({ [q]: lost, [k]: kept })).toBeCloseTo(expected, 8);
  expect(await loss({ [q]: lost, [k]: kept }, 'F32')).toBe(0);
});
