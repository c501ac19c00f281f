/** What is lost where a model that was trained in float32 is stored in 16 bits. */

import type { Params } from '../model/model.ts';
import { openCheckpoint, tensorsToWrite } from './checkpoint.ts';
import type { FloatDtype } from './half_precision.ts';
import { rounded } from './half_precision.ts';

/** Values that are compared at a time. */
const CHUNK = 2 ** 20;

/**
 * The share of what training has changed that rounding takes away: ‖rounded − trained‖ / ‖trained − initial‖, over all
 * parameters. bfloat16 keeps 8 bits of a number, and a small learning rate moves many weights by less than half of the last.
 * @param params - as trained
 * @param options.source - folder of the checkpoint that they were trained from
 * @param options.dtype - what they are stored in, all alike or each by its name
 * @returns 0 if nothing is lost; 1 and more if the change is gone
 * @throws {UserError} if the checkpoint cannot be read any more
 */
export async function roundingLoss(
  params: Params,
  { source, dtype }: { source: string; dtype: FloatDtype | Record<string, FloatDtype> },
): Promise<number> {
  const tensors = tensorsToWrite(params, dtype);
  if (tensors.every((tensor) => tensor.dtype === 'F32')) return 0;
  const initial = await openCheckpoint(source);
  let [lost, changed] = [0, 0];
  try {
    for (const { name, dtype, data } of tensors) {
      const { values } = await initial.read(name);
      for (let begin = 0; begin < values.length; begin += CHUNK) {
        const trained = await data(begin, Math.min(begin + CHUNK, values.length));
        const stored = rounded(trained, dtype);
        for (let i = 0; i < trained.length; i++) {
          lost += (stored[i] - trained[i]) ** 2;
          changed += (trained[i] - values[begin + i]) ** 2;
        }
      }
    }
  } finally {
    await initial.close();
  }
  return changed === 0 ? 0 : Math.sqrt(lost / changed);
}
