/** Files of a checkpoint that a run has saved, whose hashes are in its training_state.json. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { UserError } from '../errors.ts';
import { hashFile } from '../hashes.ts';
import { isObject, readJsonObject } from '../json.ts';

export const TRAINING_STATE = 'training_state.json';

/** @throws {UserError} naming the first file in the folder whose content is not the one that was hashed */
export async function refuseDamaged(folder: string, hashes: Record<string, unknown>): Promise<void> {
  for (const [name, hash] of Object.entries(hashes)) {
    const file = join(folder, name);
    if (!existsSync(file) || (await hashFile(file)) === hash) continue;
    throw new UserError(`${file} is damaged, or not of this checkpoint: its SHA-256 is not that in ${TRAINING_STATE}`);
  }
}

/** The same for a folder that is taken as a model, if it has hashes. */
export async function refuseDamagedModel(folder: string): Promise<void> {
  const state = await readJsonObject(join(folder, TRAINING_STATE));
  if (isObject(state?.files)) await refuseDamaged(folder, state.files);
}
