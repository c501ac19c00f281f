/** What training changes from update to update, and how a checkpoint keeps all of it. */
import { existsSync } from 'node:fs';
import { isAbsolute, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import * as tf from '@tensorflow/tfjs';
import { loadCheckpoint, type SaveDtype, saveCheckpoint, tensorsToWrite } from '../checkpoint/checkpoint.ts';
import { refuseNotFinite } from '../checkpoint/finite.ts';
import { readLora, readLoraSettings, writeLora } from '../checkpoint/lora_files.ts';
import { openSafetensors, writeSafetensors } from '../checkpoint/safetensors.ts';
import { UserError } from '../errors.ts';
import type { JsonObject } from '../json.ts';
import { parameterShapes } from '../model/config.ts';
import { createLora, LORA_TARGETS, type LoraTarget } from '../model/lora.ts';
import { type Lora, type Model, type Params, trainable } from '../model/model.ts';
import { shown } from '../text.ts';
import { createAdamW } from '../training/adamw.ts';
import type { TrainingState } from '../training/state.ts';
import { type CheckpointPlace, orGoBack, readCounts, writeCounts } from './checkpoint_state.ts';
import type { FoundRun } from './find_run.ts';

const OPTIMIZER = 'optimizer.safetensors';

/** What a new state depends on besides the policy. */
export type StateOptions = {
  /** The run to continue, from its checkpoint if it has one. */
  resumed?: FoundRun | undefined;
  gradientCheckpointing?: boolean | undefined;
} & LoraOptions;

/** The model that training starts from, and the name by which it is found again. */
type Initial = Model & { name?: string };

/** The options of an adapter: `modelName` is what it belongs to, `seed` draws its first weights. */
type LoraOptions = {
  /** 0 trains all parameters. */
  loraRank?: number;
  /** The default is twice the rank. */
  loraAlpha?: number | undefined;
  /** The default is all projections. */
  loraTarget?: LoraTarget[] | undefined;
  mergeAdapter?: boolean | undefined;
  saveDtype?: SaveDtype;
  seed?: number;
  modelName?: string;
};

/**
 * The state at the start of a run, or exactly as it was when a checkpoint was saved.
 * @param initial - the policy to start from; its tensors stay the caller's. If it has an adapter, that is what is trained.
 * @param counters - their values at the start
 * @throws {UserError} if the checkpoint is damaged, not one of this run, or of another model
 */
export async function createTrainingState(
  initial: Initial,
  counters: Record<string, number>,
  { resumed, gradientCheckpointing, ...options }: StateOptions = {},
): Promise<TrainingState> {
  const base = { config: initial.config, gradientCheckpointing };
  refuseIdleOptions(initial, options);
  const checkpoint = resumed?.checkpoint;
  if (!checkpoint) {
    const lora = startLora(initial, options);
    const model: Model = { ...base, params: copy(initial.params), lora };
    return { model, optimizer: createAdamW(trainable(model)), counters };
  }
  const place = { ...resumed, folder: checkpoint };
  const { optimizer_step: step, counters: counted, hashed } = await orGoBack(place, () => readCounts(place));
  if (!hashed)
    console.warn(
      `${checkpoint} was saved by an earlier version, without hashes: damage, or another model, may go unnoticed`,
    );
  const adapted = (await readLoraSettings(checkpoint)) !== null;
  if (adapted !== Boolean(initial.lora || options.loraRank)) {
    throw new UserError(
      `${checkpoint} holds ${adapted ? 'an adapter' : 'a whole model'}: resume it without changing --model-name and --lora-rank`,
    );
  }
  const lora = adapted ? await orGoBack(place, () => readLora(checkpoint, initial.config)) : undefined;
  if (lora) {
    // Where the run knows what it was started from, that was compared already; else the name is all that there is.
    const saved = String(lora.settings.base_model_name_or_path);
    const isMoved = isAbsolute(saved) && !existsSync(saved);
    const wanted = { ...(resumed.origin || isMoved ? {} : baseOf(initial)), ...options };
    const advice = resumed.origin ? 'leave the option out' : `leave the option out, or pass --model-name ${saved}`;
    refuseOtherAdapter(checkpoint, lora, wanted, `${advice}, or start a new run`);
    lora.settings = above(initial, lora.settings);
  }
  const params = lora ? copy(initial.params) : await readPolicy(place, initial);
  const model: Model = { ...base, params, lora };
  const moments = await orGoBack(place, () => readMoments(join(checkpoint, OPTIMIZER), trainable(model)));
  return { model, optimizer: { step, ...moments }, counters: { ...counters, ...counted } };
}

/** Copies, since an update disposes of the parameters that it replaces. */
const copy = (params: Params): Params =>
  Object.fromEntries(Object.entries(params).map(([name, param]) => [name, tf.clone(param)]));

/** The adapter to train: a copy of the one that the policy has, or a new one if the options ask for it. */
function startLora(initial: Initial, options: LoraOptions): Lora | undefined {
  if (initial.lora) {
    const below = initial.lora.settings.base_model_name_or_path;
    const advice = `leave the option out to train that adapter further, or train a new one with --model-name ${below}`;
    refuseOtherAdapter(options.modelName ?? 'the model', initial.lora, options, advice);
    const { params, settings, scale } = initial.lora;
    return { params: copy(params), settings: above(initial, settings), scale };
  }
  const {
    loraRank: rank = 0,
    loraAlpha: alpha = 2 * rank,
    loraTarget: targets = [...LORA_TARGETS],
    seed = 0,
  } = options;
  if (rank === 0) return undefined;
  return createLora(initial.config, { rank, alpha, targets, seed, ...baseOf(initial) });
}

/** The model below an adapter, so that Python finds the same from any folder and at any time. */
function baseOf({ lora, name = '' }: Initial): { base: string; revision?: string | null } {
  if (lora) return { base: lora.settings.base_model_name_or_path as string };
  if (isAbsolute(name)) return { base: name };
  const [base, revision = null] = name.split('@');
  return { base, revision };
}

/** The settings of an adapter on top of a folder, wherever that lay when they were written. */
const above = ({ name = '' }: Initial, settings: JsonObject): JsonObject =>
  isAbsolute(name) ? { ...settings, base_model_name_or_path: name } : settings;

/** The weights in a checkpoint, which must be those of the same kind of model. */
async function readPolicy(place: CheckpointPlace, { config }: Initial): Promise<Params> {
  const saved = await orGoBack(place, () => loadCheckpoint(place.folder));
  if (isDeepStrictEqual(parameterShapes(saved.config), parameterShapes(config))) return saved.params;
  throw new UserError(`${place.folder} holds another kind of model than --model-name: leave that out`);
}

/** Refuses options about an adapter where there is none, and about a whole model where only an adapter is saved. */
function refuseIdleOptions({ lora }: Model, options: LoraOptions): void {
  if (lora || options.loraRank) {
    const { saveDtype = 'auto', mergeAdapter } = options;
    if (mergeAdapter || ['auto', 'float32'].includes(saveDtype)) return;
    throw new UserError(
      `--save-dtype ${saveDtype} is about a whole model, and an adapter is stored in float32: leave it out, or pass --merge-adapter as well`,
    );
  }
  const idle = Object.entries({
    'lora-alpha': 'loraAlpha',
    'lora-target': 'loraTarget',
    'merge-adapter': 'mergeAdapter',
  });
  const given = idle.find(([, key]) => options[key as keyof LoraOptions] !== undefined);
  if (given) throw new UserError(`--${given[0]} is about an adapter, and there is none: pass --lora-rank as well`);
}

/** Refuses options that differ from the settings of an existing adapter. `advice` says what to do instead. */
function refuseOtherAdapter(
  where: string,
  { settings }: Lora,
  { loraRank, loraAlpha, loraTarget, base, revision }: LoraOptions & { base?: string; revision?: string | null },
  advice: string,
): void {
  const sorted = (targets: unknown) => (Array.isArray(targets) ? targets.toSorted().join() : targets);
  const wanted: [option: string, wanted: unknown, found: unknown][] = [
    ['--lora-rank', loraRank || undefined, settings.r],
    ['--lora-alpha', loraAlpha, settings.lora_alpha],
    ['--lora-target', sorted(loraTarget), sorted(settings.target_modules)],
    ['--model-name', base, settings.base_model_name_or_path],
    ['the revision of --model-name', revision ?? undefined, settings.revision],
  ];
  const other = wanted.find(([, value, found]) => value !== undefined && value !== found);
  if (!other) return;
  throw new UserError(
    `${other[0]} is ${shown(other[1])}, but ${where} holds an adapter made for ${shown(other[2] ?? null)}: ${advice}`,
  );
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
            `${path}: ${moment}.${name} must have the parameter's shape [${shape}], found ${found ? `[${found}]` : 'nothing'}`,
          );
        }
        const values = await file.read(`${moment}.${name}`);
        refuseNotFinite(values, `${moment}.${name}`, { file: path });
        if (moment === 'v' && values.some((value) => value < 0)) {
          throw new UserError(
            `${path}: v.${name} is a mean of squares, and holds a value below 0: the file is damaged`,
          );
        }
        moments[moment][name] = tf.tensor(values, shape);
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
 * @param place - which checkpoint it is
 * @param source - the folder that the policy came from, for its configuration and tokenizer
 * @throws {UserError} if a file cannot be written, or a value is not finite
 */
export async function saveTrainingState(
  place: CheckpointPlace,
  { model, optimizer, counters }: TrainingState,
  source: string,
): Promise<void> {
  const { folder } = place;
  if (model.lora) await writeLora(folder, model.lora);
  else await saveCheckpoint(folder, { source, params: model.params });
  const tensors = (['m', 'v'] as const).flatMap((moment) =>
    tensorsToWrite(optimizer[moment]).map((tensor) => ({ ...tensor, name: `${moment}.${tensor.name}` })),
  );
  await writeSafetensors(join(folder, OPTIMIZER), tensors);
  await writeCounts(place, { optimizer_step: optimizer.step, counters });
}
