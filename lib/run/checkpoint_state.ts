/** training_state.json: what a checkpoint is, what was counted, and hashes by which damage is noticed. */
import { readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { refuseDamaged, TRAINING_STATE } from '../checkpoint/hashed_files.ts';
import { mistakeIn, UserError } from '../errors.ts';
import { writeFile } from '../folders.ts';
import { hashFile, hashJson } from '../hashes.ts';
import { type JsonObject, readJsonObject } from '../json.ts';
import { findCheckpoints } from './find_run.ts';

/** Which checkpoint it is, and where. Runs of earlier versions have no `id`. */
export type CheckpointPlace = { folder: string; experiment: string; id?: string; step: number };

/** The optimizer's step, and whatever is counted. */
export type Counts = { optimizer_step: number; counters: Record<string, number> };

type Written = Counts & { experiment: string; run?: string; step: number; files: Record<string, string> };

/** Writes training_state.json: the last file of a checkpoint, since it holds the hashes of all others. */
export async function writeCounts({ folder, experiment, id, step }: CheckpointPlace, counts: Counts): Promise<void> {
  const files: Record<string, string> = {};
  for (const name of await readdir(folder)) files[name] = await hashFile(join(folder, name));
  const content: Written = { experiment, run: id, step, ...counts, files };
  await writeFile(
    join(folder, TRAINING_STATE),
    `${JSON.stringify({ ...content, sha256: hashJson(content) }, null, 2)}\n`,
  );
}

/**
 * Reads from a checkpoint; a mistake on the way also says which checkpoint before it is whole.
 * @throws {UserError} if `read` does, or something cannot be read
 */
export async function orGoBack<T>(place: CheckpointPlace, read: () => Promise<T>): Promise<T> {
  try {
    return await read();
  } catch (error) {
    const mistake = mistakeIn(error)?.replace(/\.$/, '');
    if (mistake === undefined) throw error;
    const run = dirname(place.folder);
    const earlier = [...findCheckpoints(run)].filter(([step]) => step < place.step);
    for (const [step, folder] of earlier.reverse()) {
      const isWhole = await readCounts({ ...place, folder, step }).then(Boolean, () => false);
      if (isWhole) throw new UserError(`${mistake}; --resume ${run}/checkpoint-${step} goes on from the one before it`);
    }
    throw new UserError(`${mistake}; there is no whole checkpoint before it: start a new run`);
  }
}

/**
 * Reads training_state.json, and finds out whether the checkpoint is whole, and the one that it is taken for.
 * @returns `hashed` is false if an earlier version has saved the checkpoint, without hashes
 * @throws {UserError} naming the file that is damaged, or saying what the checkpoint is
 */
export async function readCounts(place: CheckpointPlace): Promise<Counts & { hashed: boolean }> {
  const { folder } = place;
  const file = join(folder, TRAINING_STATE);
  const saved = await readJsonObject(file);
  if (!saved) throw new UserError(`${folder} has no ${TRAINING_STATE}, with which every checkpoint ends`);
  // Where a run has an id, each of its checkpoints has hashes.
  if (isUnhashed(saved) && place.id === undefined) {
    const { optimizer_step, ...counters } = saved;
    return { optimizer_step, counters, hashed: false };
  }
  const { sha256, ...content } = saved;
  if (sha256 !== hashJson(content)) throw new UserError(`${file} is damaged: it does not match its own SHA-256`);
  // What matches was written by writeCounts: its types need no check.
  const { experiment, run, step, files, optimizer_step, counters } = content as Written;
  if (experiment !== place.experiment) throw new UserError(`${folder} belongs to a run of ${experiment}`);
  if (run !== place.id) throw new UserError(`${folder} belongs to another run`);
  if (step !== place.step) throw new UserError(`${folder} is the checkpoint of step ${step}, under another name`);
  const found = (await readdir(folder)).filter((name) => name !== TRAINING_STATE);
  for (const name of Object.keys(files)) {
    if (!found.includes(name)) throw new UserError(`${join(folder, name)} is missing`);
  }
  await refuseDamaged(folder, files);
  const added = found.find((name) => /\.(json|safetensors)$/.test(name) && !Object.hasOwn(files, name));
  if (added !== undefined) throw new UserError(`${join(folder, added)} is not of this checkpoint: remove it`);
  return { optimizer_step, counters, hashed: true };
}

/** What earlier versions wrote: `optimizer_step` and the counters, and nothing else. */
const isUnhashed = (saved: JsonObject): saved is Record<string, number> =>
  Number.isSafeInteger(saved.optimizer_step) &&
  Object.values(saved).every((count) => typeof count === 'number' && Number.isFinite(count) && count >= 0);
