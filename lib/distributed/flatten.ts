/** Tensors as one list of numbers, as they travel between ranks. */
import * as tf from '@tensorflow/tfjs';
import type { Params } from '../model/model.ts';
import type { Communicator } from './communicator.ts';

/** Numbers that the ranks send at once: 16 MB. */
const BUCKET = 2 ** 22;

/** The values of all tensors, one tensor after the other. */
export async function flatten(tensors: Params): Promise<Float32Array> {
  const flat = new Float32Array(Object.values(tensors).reduce((sum, { size }) => sum + size, 0));
  let offset = 0;
  for (const tensor of Object.values(tensors)) {
    flat.set(await tensor.data<'float32'>(), offset);
    offset += tensor.size;
  }
  return flat;
}

/**
 * New tensors from the list of numbers that {@link flatten} makes of others.
 * @param like - their names and shapes; these tensors may have been disposed of
 */
export function unflatten(flat: Float32Array, like: Params): Params {
  let offset = 0;
  const entries = Object.entries(like).map(([name, { shape, size }]) => {
    offset += size;
    return [name, tf.tensor(flat.slice(offset - size, offset), shape)];
  });
  return Object.fromEntries(entries);
}

/**
 * Adds up tensors over all ranks: they travel as one list of numbers, in a few buckets. Disposes of this rank's own.
 * @returns the sums, the same on every rank
 */
export async function allReduceTensors({ allReduceSum }: Communicator, own: Params): Promise<Params> {
  const flat = await flatten(own);
  tf.dispose(own);
  for (let begin = 0; begin < flat.length; begin += BUCKET) await allReduceSum(flat.subarray(begin, begin + BUCKET));
  return unflatten(flat, own);
}
