/** The training state, the same on every rank. */
import { createHash } from 'node:crypto';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { type Params, trainable } from '../model/model.ts';
import type { TrainingState } from '../training/state.ts';
import { type Communicator, fromRankZero } from './communicator.ts';

/** Gives every rank rank 0's policy, optimizer and counters; the tensors that it had are disposed of. */
export async function broadcastState(communicator: Communicator, state: TrainingState): Promise<void> {
  if (communicator.size === 1) return;
  const { optimizer } = state;
  const { step, counters } = await fromRankZero(communicator, () => ({
    step: optimizer.step,
    counters: state.counters,
  }));
  state.counters = counters;
  optimizer.step = step;
  for (const tensors of [trainable(state.model), optimizer.m, optimizer.v]) {
    for (const [name, tensor] of Object.entries(tensors)) {
      const values = Float32Array.from(await tensor.data<'float32'>());
      await communicator.broadcast(new Uint8Array(values.buffer));
      if (communicator.rank === 0) continue;
      tensors[name] = tf.tensor(values, tensor.shape);
      tensor.dispose();
    }
  }
}

/**
 * Checks that every rank has the same weights, to the last bit: they can only differ if a machine computes differently.
 * @throws {UserError} on a rank whose weights are not those of rank 0
 */
export async function checkInSync(communicator: Communicator, params: Params, step: number): Promise<void> {
  const hash = createHash('sha256');
  for (const param of Object.values(params)) {
    const { buffer, byteOffset, byteLength } = await param.data<'float32'>();
    hash.update(new Uint8Array(buffer, byteOffset, byteLength));
  }
  const own = hash.digest();
  const expected = Uint8Array.from(own);
  await communicator.broadcast(expected);
  if (own.equals(expected)) return;
  throw new UserError(
    `after step ${step} the weights of rank ${communicator.rank} are not those of rank 0: all ranks need the same backend, libraries and kind of processor; --resume continues from the last checkpoint`,
  );
}
