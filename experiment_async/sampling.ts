/**
 * Who samples which batch, and with which weights: this process, in an order that is known beforehand, or sampler processes
 * that do not wait for it. What is learnt from a batch is in train.ts.
 */
import * as tf from '@tensorflow/tfjs';
import { type BackendName, type BackendOptions, initBackend } from '../lib/backend/index.ts';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { flatten, unflatten } from '../lib/distributed/flatten.ts';
import { ownSampler, readNewerWeights, type Samplers, serveJobs, startSamplers } from '../lib/distributed/samplers.ts';
import { readJsonLines } from '../lib/environments/json_lines.ts';
import { UserError } from '../lib/errors.ts';
import type { GenerateOptions } from '../lib/generation/generate.ts';
import { type Model, trainable, withTrainable } from '../lib/model/model.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import type { TrainingState } from '../lib/training/state.ts';

/** From a token position on, weights that had been trained for so many steps: `[[0, 3], [7, 4]]`. */
export type Switches = [position: number, version: number][];

/** Completions of one batch, and who sampled them when (milliseconds since the epoch), with which weights. */
export type Batch<T> = {
  job: number;
  rollouts: T[];
  switches: Switches;
  sampler: number | undefined;
  began: number;
  ended: number;
  dropped: number; // batches that were too stale, since the last one
  waiting: number; // batches that are finished, besides this one
};

/** Where batches come from. */
export type Source<T> = {
  /** The next batch to train on. */
  next: (step: number) => Promise<Batch<T>>;
  /** The policy has made a step: those who sample are to know. */
  publish: (step: number) => Promise<void>;
  close: () => void;
};

/** Samples the batch of a number. Before each token position but the first, `onProgress` may change the model's weights. */
export type Sample<T> = (
  model: Model,
  tokenizer: Tokenizer,
  job: number,
  watch: Required<Pick<GenerateOptions, 'onProgress'>>,
) => Promise<T[]>;

/** The version that each of so many tokens was sampled with. */
export const versionsOf = (switches: Switches, length: number): number[] =>
  Array.from({ length }, (_, t) => switches.findLast(([position]) => position <= t)![1]);

// ─── In this process ─────────────────────────────────────────────────────────────────────────────────────────────────

/** Which batch a step trains on, and the versions that sample it. */
export type Plan = (step: number) => { job: number; switches: Switches };

/** Each batch with weights that are `lag` steps old, or those of the start; with 0, the policy's own: GRPO as ever. */
export const lagging =
  (lag: number): Plan =>
  (step) => ({ job: step, switches: [[0, Math.max(0, step - 1 - lag)]] });

/**
 * The order that an earlier run had, from the schedule.jsonl in its folder.
 * @throws {UserError} if a line is none of these, or a step is missing
 */
export function readSchedule(file: string, maxSteps: number): Plan {
  const lines = readJsonLines(file, ({ step, job, switches }) => {
    const isOrder =
      Array.isArray(switches) &&
      switches.length > 0 &&
      switches.every((one) => Array.isArray(one) && one.every(Number.isInteger));
    if (Number.isInteger(step) && Number.isInteger(job) && isOrder)
      return { step: step as number, job: job as number, switches: switches as Switches };
    throw new Error('expected a step, a job and switches, as an asynchronous run writes them');
  });
  const plans = new Map(lines.map((line) => [line.step, line]));
  for (let step = 1; step <= maxSteps; step++) {
    if (!plans.has(step))
      throw new UserError(`${file} has no step ${step}: lower --max-steps ${maxSteps} to what it has`);
  }
  return (step) => plans.get(step)!;
}

/** Samples as a plan says, in this process: nothing depends on how long anything takes. */
export function createPlannedSource<T>(
  sample: Sample<T>,
  { state, tokenizer, from }: Policy,
  plan: Plan,
  { maxSteps }: { maxSteps: number },
): Source<T> {
  /** Weights of versions that are needed again. */
  const kept = new Map<number, Float32Array>();
  const versions = (step: number) => plan(step).switches.map(([, version]) => version);
  const isNeeded = (version: number, from: number) => {
    for (let step = from; step <= maxSteps; step++)
      if (version < step - 1 && versions(step).includes(version)) return true;
    return false;
  };
  const keep = async (version: number) => {
    for (const old of kept.keys()) if (!isNeeded(old, version + 1)) kept.delete(old);
    if (isNeeded(version, version + 1)) kept.set(version, await flatten(trainable(state.model)));
  };
  return {
    next: async (step) => {
      if (step === from + 1) await keep(from);
      const { job, switches } = plan(step);
      const made: Model[] = [];
      const weightsOf = (version: number): Model => {
        if (version === step - 1) return state.model;
        const values = kept.get(version);
        if (!values)
          throw new UserError(
            `step ${step} needs the weights after step ${version}, which this run has not made: start it anew, without --resume`,
          );
        made.push(withTrainable(state.model, unflatten(values, trainable(state.model))));
        return made.at(-1)!;
      };
      const acting = { ...weightsOf(switches[0][1]) };
      const began = Date.now();
      try {
        const rollouts = await sample(acting, tokenizer, job, {
          onProgress: ({ positions }) => {
            const due = switches.find(([at]) => at === positions);
            if (due) acting.params = weightsOf(due[1]).params;
          },
        });
        return { job, rollouts, switches, sampler: undefined, began, ended: Date.now(), dropped: 0, waiting: 0 };
      } finally {
        tf.dispose(made.map(trainable));
      }
    },
    publish: keep,
    close: () => {},
  };
}

// ─── In processes of their own ───────────────────────────────────────────────────────────────────────────────────────

/** What a sampler sends of a batch. */
export type Sampled<T> = { rollouts: T[]; switches: Switches };

/** The options that a sampler needs. */
type SamplerOptions = BackendOptions & {
  modelName: string;
  backend: BackendName;
  samplerBackend?: BackendName | undefined;
  samplerGpu?: string | undefined;
  samplerThreads?: number | undefined;
  inFlight?: boolean | undefined;
} & Parameters<typeof loadWithTokenizer>[1] &
  Parameters<typeof createTrainingState>[2];

/**
 * What a sampler does: it samples whatever batch the trainer asks for, with the newest weights; `inFlight`, it takes newer ones
 * in the middle of completions, too, which go on with keys and values of the older ones. Does not return.
 */
export async function serveSamples<T>(sample: Sample<T>, options: SamplerOptions): Promise<void> {
  const { samplerBackend = options.backend, samplerGpu: gpu, samplerThreads: threads = options.threads } = options;
  await initBackend(samplerBackend, { ...options, gpu, threads });
  const { model: initial, tokenizer } = await loadWithTokenizer(options.modelName, options);
  let { model } = await createTrainingState(initial, {}, options);
  let version = -1;
  const { folder } = ownSampler()!;
  /** Whether there were newer weights; the older tensors are freed once nobody samples with them. */
  const update = (old: Model[]): boolean => {
    const newer = readNewerWeights(folder, version);
    if (!newer) return false;
    old.push(model);
    [model, version] = [withTrainable(model, unflatten(newer.values, trainable(model))), newer.version];
    return true;
  };
  await serveJobs(async (job): Promise<Sampled<T>> => {
    const old: Model[] = [];
    update(old);
    const switches: Switches = [[0, version]];
    const acting = { ...model };
    const rollouts = await sample(acting, tokenizer, job, {
      onProgress: ({ positions }) => {
        if (!options.inFlight || !update(old)) return;
        acting.params = model.params;
        switches.push([positions, version]);
      },
    });
    tf.dispose(old.map(trainable));
    return { rollouts, switches };
  });
}

/** What is known of an asynchronous run's batches at a time. */
export type Flow = {
  outstanding: number; // batches that are being sampled, or wait
  isTraining: boolean; // on a batch that was taken
  unpublished: number; // steps that those who sample do not know of
};

/**
 * Whether another batch may be begun. It is trained on after all that are outstanding, and each of these is a step by which its
 * weights grow older; so are steps that were not published.
 */
export const mayBegin = ({ outstanding, isTraining, unpublished }: Flow, maxStaleness: number): boolean =>
  outstanding + Number(isTraining) + unpublished <= maxStaleness;

/**
 * Batches from samplers, in the order in which they are finished. Those that are staler than allowed, since others overtook
 * them, are dropped.
 * @param begin - starts the samplers; what it is given is to be called when one has nothing to do
 */
export async function createSamplerSource<T>(
  begin: (onFree: () => void) => Samplers<Sampled<T>>,
  { state, from }: Policy,
  { maxSteps, maxStaleness, weightSyncSteps }: { maxSteps: number; maxStaleness: number; weightSyncSteps: number },
): Promise<Source<T>> {
  // Nothing may begin before the first weights are there.
  const flow: Flow = { outstanding: 0, isTraining: false, unpublished: Number.POSITIVE_INFINITY };
  let [made, job] = [from, from + 1];
  const samplers = begin(() => fill());
  const fill = () => {
    const isWanted = () => made + flow.outstanding + Number(flow.isTraining) < maxSteps;
    while (isWanted() && mayBegin(flow, maxStaleness) && samplers.tryStart(job)) {
      job += 1;
      flow.outstanding += 1;
    }
  };
  const publish = async () => {
    samplers.publish({ version: made, values: await flatten(trainable(state.model)) });
    flow.unpublished = 0;
  };
  await publish();
  return {
    next: async (step) => {
      for (let dropped = 0; ; dropped++) {
        fill();
        const { result, ...taken } = await samplers.next();
        flow.outstanding -= 1;
        if (step - 1 - result.switches[0][1] > maxStaleness) continue;
        flow.isTraining = true;
        fill();
        return { ...taken, ...result, dropped, waiting: samplers.waiting() };
      }
    },
    publish: async (step) => {
      Object.assign(flow, { isTraining: false, unpublished: flow.unpublished + 1 });
      made = step;
      if (step % weightSyncSteps === 0) await publish();
      fill();
    },
    close: samplers.close,
  };
}

// ─── Either ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Who is in training, and the steps that it has made. */
export type Policy = { state: TrainingState; tokenizer: Tokenizer; from: number };

type SourceOptions = {
  mode: 'sync' | 'async';
  samplers: number;
  maxSteps: number;
  maxStaleness: number;
  weightSyncSteps: number;
  lag?: number | undefined;
  schedule?: string | undefined;
};

/** Where the batches of a run come from: this process, as is known beforehand, or samplers that are started. */
export async function createSource<T>(sample: Sample<T>, policy: Policy, options: SourceOptions): Promise<Source<T>> {
  const { mode, schedule, lag = mode === 'sync' ? 0 : undefined, samplers, maxSteps } = options;
  if (schedule !== undefined) return createPlannedSource(sample, policy, readSchedule(schedule, maxSteps), options);
  if (lag !== undefined) return createPlannedSource(sample, policy, lagging(lag), options);
  const say = (line: string) => console.log(line);
  return createSamplerSource((onFree) => startSamplers(samplers, { say, onFree }), policy, options);
}
