/** What training changes from update to update, and how a checkpoint keeps all of it. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { loadCheckpoint, saveCheckpoint, tensorsToWrite } from '../model/checkpoint.ts';
import { readJsonObject } from '../model/config.ts';
import { type Model, type Params, trainable } from '../model/llama.ts';
import {
  createLora,
  LORA_TARGETS,
  type Lora,
  type LoraTarget,
  readLora,
  readLoraSettings,
  writeLora,
} from '../model/lora.ts';
import { openSafetensors, writeSafetensors } from '../model/safetensors.ts';
import { type AdamWState, createAdamW } from '../training/adamw.ts';
import { UserError } from './errors.ts';

/** Policy, optimizer, and whatever is counted. Random numbers need no state: they depend on seed and step alone. */
export type TrainingState = { model: Model; optimizer: AdamWState; counters: Record<string, number> };

/** What a new state depends on besides the policy. */
export type StateOptions = {
  /** Folder to continue from. */
  checkpoint?: string | undefined;
  /** 0 trains all parameters, otherwise an adapter of that rank is put on top of them, with draws from `seed`. */
  loraRank?: number;
  loraAlpha?: number | undefined;
  loraTarget?: LoraTarget[];
  seed?: number;
  /** The name of the policy: an adapter says what it belongs to. */
  modelName?: string;
  gradientCheckpointing?: boolean;
};

/**
 * The state at the start of a run, or exactly as it was when a checkpoint was saved.
 * @param initial - the policy to start from; its tensors stay the caller's. If it has an adapter, that is what is trained.
 * @param counters - their values at the start
 * @throws {UserError} if the folder holds a model without training state (e.g. a final_model), or one of another model
 */
export async function createTrainingState(
  initial: Model,
  counters: Record<string, number>,
  { checkpoint, gradientCheckpointing, ...options }: StateOptions = {},
): Promise<TrainingState> {
  const base = { config: initial.config, gradientCheckpointing };
  if (!checkpoint) {
    const lora = startLora(initial, options);
    const model: Model = { ...base, params: copy(initial.params), lora };
    return { model, optimizer: createAdamW(trainable(model)), counters };
  }
  const saved = await readJsonObject(join(checkpoint, 'training_state.json'));
  if (!saved) {
    throw new UserError(`${checkpoint} has no training_state.json: resume from a checkpoint-<step> folder of a run`);
  }
  const { optimizer_step: step, ...counted } = saved as Record<string, number>;
  const adapted = (await readLoraSettings(checkpoint)) !== null;
  if (adapted !== Boolean(initial.lora || options.loraRank)) {
    throw new UserError(
      `${checkpoint} holds ${adapted ? 'an adapter' : 'a whole model'}: resume it without changing --model-name and --lora-rank`,
    );
  }
  const model: Model = adapted
    ? { ...base, params: copy(initial.params), lora: await readLora(checkpoint, initial.config) }
    : { ...base, params: (await loadCheckpoint(checkpoint)).params };
  const moments = await readMoments(join(checkpoint, 'optimizer.safetensors'), trainable(model));
  return { model, optimizer: { step, ...moments }, counters: { ...counters, ...counted } };
}

/** Copies, since an update disposes of the parameters that it replaces. */
const copy = (params: Params): Params =>
  Object.fromEntries(Object.entries(params).map(([name, param]) => [name, tf.clone(param)]));

/** The adapter to train: a copy of the one that the policy has, or a new one if the options ask for it. */
function startLora({ config, lora }: Model, options: StateOptions): Lora | undefined {
  const { loraRank: rank = 0, loraAlpha: alpha = 2 * rank, loraTarget: targets = [...LORA_TARGETS] } = options;
  if (!lora) {
    const { seed = 0, modelName: base = '' } = options;
    return rank > 0 ? createLora(config, { rank, alpha, targets, seed, base }) : undefined;
  }
  if (rank > 0 && rank !== lora.settings.r) {
    throw new UserError(
      `--lora-rank ${rank}: the model has an adapter of rank ${lora.settings.r} already, which is trained further: leave out --lora-rank, or merge the adapter first`,
    );
  }
  return { ...lora, params: copy(lora.params) };
}

/** Both moments of every parameter, as {@link saveTrainingState} left them. */
async function readMoments(path: string, params: Params): Promise<{ m: Params; v: Params }> {
  const file = await openSafetensors(path);
  const moments: { m: Params; v: Params } = { m: {}, v: {} };
  try {
    for (const [name, { shape }] of Object.entries(params)) {
      for (const moment of ['m', 'v'] as const) {
        const found = file.tensors.get(`${moment}.${name}`)?.shape;
        if (String(found) !== String(shape)) {
          throw new UserError(
            `${path}: ${moment}.${name} must have the parameter's shape [${shape}], found ${found ? `[${found}]` : 'nothing'}: resume from another checkpoint`,
          );
        }
        moments[moment][name] = tf.tensor(await file.read(`${moment}.${name}`), shape);
      }
    }
  } finally {
    await file.close();
  }
  return moments;
}

/**
 * Writes a checkpoint: a Hugging Face folder in float32 (of a policy with an adapter, the adapter alone, in PEFT's format),
 * `optimizer.safetensors` and `training_state.json`.
 * @param source - the folder that the policy came from, for its configuration and tokenizer
 */
export async function saveTrainingState(
  folder: string,
  { model, optimizer, counters }: TrainingState,
  source: string,
): Promise<void> {
  if (model.lora) await writeLora(folder, model.lora);
  else await saveCheckpoint(folder, { source, params: model.params });
  const tensors = (['m', 'v'] as const).flatMap((moment) =>
    tensorsToWrite(optimizer[moment]).map((tensor) => ({ ...tensor, name: `${moment}.${tensor.name}` })),
  );
  await writeSafetensors(join(folder, 'optimizer.safetensors'), tensors);
  const state = { optimizer_step: optimizer.step, ...counters };
  await writeFile(join(folder, 'training_state.json'), `${JSON.stringify(state, null, 2)}\n`);
}
