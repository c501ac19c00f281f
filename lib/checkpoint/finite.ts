/** Values that are numbers: with one NaN among the weights, everything that is computed from them is NaN. */
import { UserError } from '../errors.ts';
import { shown } from '../text.ts';
import type { FloatDtype } from './half_precision.ts';

/** The smallest magnitude that becomes infinite when it is rounded to the dtype. */
const TOO_LARGE: Record<FloatDtype, number> = { F32: Infinity, BF16: (2 - 2 ** -8) * 2 ** 127, F16: 65_520 };

/**
 * Refuses NaN, what is infinite, and what would be infinite as `dtype`.
 * @param tensor - whose values they are, for the message
 * @param options.file - that they were read from; without it they are to be saved
 * @throws {UserError} naming the tensor and the first such value
 */
export function refuseNotFinite(
  values: Float32Array,
  tensor: string,
  { file, dtype = 'F32' }: { file?: string; dtype?: FloatDtype } = {},
): void {
  const limit = TOO_LARGE[dtype];
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]) < limit) continue; // false for NaN
    const found = `tensor ${shown(tensor)} holds ${values[i]}`;
    if (file) throw new UserError(`${file}: ${found}: the file is damaged, or what saved it had failed; take another`);
    if (Number.isFinite(values[i])) throw new UserError(`${found}, which ${dtype} cannot hold`);
    throw new UserError(`${found}: training has diverged, a lower --learning-rate may help`);
  }
}
