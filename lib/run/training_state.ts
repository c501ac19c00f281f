/** What training changes from update to update, and how a checkpoint keeps all of it. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { loadCheckpoint, saveCheckpoint, tensorsToWrite } from '../model/checkpoint.ts';
import { readJsonObject } from '../model/config.ts';
import type { Model, Params } from '../model/llama.ts';
import { openSafetensors, writeSafetensors } from '../model/safetensors.ts';
import { type AdamWState, createAdamW } from '../training/adamw.ts';
import { UserError } from './errors.ts';

/** Policy, optimizer, and whatever is counted. Random numbers need no state: they depend on seed and step alone. */
export type TrainingState = { model: Model; optimizer: AdamWState; counters: Record<string, number> };

/**
 * The state at the start of a run, or exactly as it was when a checkpoint was saved.
 * @param initial - the policy to start from; its tensors stay the caller's
 * @param counters - their values at the start
 * @param checkpoint - folder to continue from
 * @throws {UserError} if the folder holds a model without training state (e.g. a final_model), or one of another model
 */
export async function createTrainingState(
  { config, params }: Model,
  counters: Record<string, number>,
  checkpoint?: string,
): Promise<TrainingState> {
  if (!checkpoint) {
    // Copies, since an update disposes of the parameters that it replaces.
    const copies = Object.fromEntries(Object.entries(params).map(([name, param]) => [name, tf.clone(param)]));
    return { model: { config, params: copies }, optimizer: createAdamW(copies), counters };
  }
  const saved = await readJsonObject(join(checkpoint, 'training_state.json'));
  if (!saved) {
    throw new UserError(`${checkpoint} has no training_state.json: resume from a checkpoint-<step> folder of a run`);
  }
  const { optimizer_step: step, ...counted } = saved as Record<string, number>;
  const model = await loadCheckpoint(checkpoint);
  const file = await openSafetensors(join(checkpoint, 'optimizer.safetensors'));
  const moments: { m: Params; v: Params } = { m: {}, v: {} };
  for (const [name, { shape }] of Object.entries(model.params)) {
    for (const moment of ['m', 'v'] as const) {
      const found = file.tensors.get(`${moment}.${name}`)?.shape;
      if (String(found) !== String(shape)) {
        throw new UserError(
          `${file.file}: ${moment}.${name} must have the parameter's shape [${shape}], found ${found ? `[${found}]` : 'nothing'}: resume from another checkpoint`,
        );
      }
      moments[moment][name] = tf.tensor(await file.read(`${moment}.${name}`), shape);
    }
  }
  await file.close();
  return { model, optimizer: { step, ...moments }, counters: { ...counters, ...counted } };
}

/**
 * Writes a checkpoint: a Hugging Face folder in float32, `optimizer.safetensors` and `training_state.json`.
 * @param source - the folder that the policy came from, for its configuration and tokenizer
 */
export async function saveTrainingState(
  folder: string,
  { model, optimizer, counters }: TrainingState,
  source: string,
): Promise<void> {
  await saveCheckpoint(folder, { source, params: model.params });
  const tensors = (['m', 'v'] as const).flatMap((moment) =>
    tensorsToWrite(optimizer[moment]).map((tensor) => ({ ...tensor, name: `${moment}.${tensor.name}` })),
  );
  await writeSafetensors(join(folder, 'optimizer.safetensors'), tensors);
  const state = { optimizer_step: optimizer.step, ...counters };
  await writeFile(join(folder, 'training_state.json'), `${JSON.stringify(state, null, 2)}\n`);
}
