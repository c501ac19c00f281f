/**
 * Who samples which batch, and with which weights: this process, in an order that is known beforehand, or sampler processes
 * that do not wait for it. What is learnt from a batch is in train.ts.
 */
import { existsSync, readdirSync, renameSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { type BackendName, type BackendOptions, initBackend } from '../lib/backend/index.ts';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import { openSafetensors, writeSafetensors } from '../lib/checkpoint/safetensors.ts';
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { type Communicator, fromRankZero, gather, shard } from '../lib/distributed/communicator.ts';
import { flatten, unflatten } from '../lib/distributed/flatten.ts';
import {
  readNewerWeights,
  type Samplers,
  serveJobs,
  startSamplers,
  type Weights,
} from '../lib/distributed/samplers.ts';
import { readJsonLines } from '../lib/environments/json_lines.ts';
import { UserError } from '../lib/errors.ts';
import type { GenerateOptions } from '../lib/generation/generate.ts';
import { disposeModel, type Model, trainable, withTrainable } from '../lib/model/model.ts';
import { findRun, readJson } from '../lib/run/find_run.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { sum } from '../lib/statistics.ts';
import { shown } from '../lib/text.ts';
import { logProbsOf, type Sequence } from '../lib/training/log_probs.ts';
import type { TrainingState } from '../lib/training/state.ts';

/** From a token position on, weights that had been trained for so many steps: `[[0, 3], [7, 4]]`. */
export type Switches = [position: number, version: number][];

/** Completions of one batch, and who sampled them when (milliseconds since the epoch), with which weights. */
export type Batch<T> = {
  job: number;
  rollouts: T[];
  refLogProbs?: number[][] | undefined; // log π_ref of each completion token, if whoever sampled has the reference
  switches: Switches;
  sampler: number | undefined; // undefined: this process
  began: number;
  ended: number;
  dropped: Pick<Batch<T>, 'rollouts' | 'sampler' | 'began' | 'ended' | 'switches'>[]; // too stale, since the last one
  waiting: number; // batches that are finished, besides this one
};

/** Where batches come from. */
export type Source<T> = {
  /** The next batch to train on. */
  next: (step: number) => Promise<Batch<T>>;
  /** The policy has made a step: those who sample are to know. */
  publish: (step: number) => Promise<void>;
  /** Weights of earlier steps that batches to come are to be sampled with, by version. */
  older: () => Map<number, Float32Array>;
  close: () => void | Promise<void>;
};

/** Which problems of a batch are sampled, from `begin` to before `end`. */
type Share = { begin: number; end: number };

/**
 * Samples the batch of a number, or a share of it. Before each token position but the first, `onProgress` may change the
 * model's weights.
 */
export type Sample<T> = (
  model: Model,
  tokenizer: Tokenizer,
  job: number,
  watch: Required<Pick<GenerateOptions, 'onProgress'>>,
  share?: Share,
) => Promise<T[]>;

/** The version that each of so many tokens was sampled with. */
export const versionsOf = (switches: Switches, length: number): number[] =>
  Array.from({ length }, (_, t) => switches.filter(([position]) => position <= t).at(-1)![1]);

// ─── In this process ─────────────────────────────────────────────────────────────────────────────────────────────────

/** Which batch a step trains on, and the versions that sample it. */
export type Plan = (step: number) => { job: number; switches: Switches };

/**
 * Each batch with weights that are `lag` steps old, or the oldest that there are; with 0, the policy's own: GRPO as ever.
 * @param from - steps that the run has made before: of older weights nothing is left
 */
export const lagging =
  (lag: number, from = 0): Plan =>
  (step) => ({ job: step, switches: [[0, Math.max(from, step - 1 - lag)]] });

/** A plan for the steps after the first `from`, of which the older weights are there that `has` says. */
type Planning = (from: number, has: (version: number) => boolean) => Plan;

/** Where the older weights of a checkpoint are, beside it: the values of all tensors, one list for each version. */
const olderOf = (checkpoint: string): string =>
  join(dirname(checkpoint), basename(checkpoint).replace('checkpoint', 'older_weights').concat('.safetensors'));

/**
 * Puts older weights beside a checkpoint, so that what is planned can go on from there to the bit. Those of checkpoints that are
 * gone go, too.
 */
export async function writeOlder(checkpoint: string, older: Map<number, Float32Array>): Promise<void> {
  const folder = dirname(checkpoint);
  for (const name of readdirSync(folder)) {
    const [, step] = /^older_weights-(\d+)\./.exec(name) ?? [];
    if (step !== undefined && !existsSync(join(folder, `checkpoint-${step}`))) rmSync(join(folder, name));
  }
  const file = olderOf(checkpoint);
  rmSync(file, { force: true }); // of a checkpoint that this one replaces
  if (older.size === 0) return;
  const tensors = [...older].map(([version, data]) => ({
    ...{ name: String(version), dtype: 'F32' as const, shape: [data.length], data },
  }));
  await writeSafetensors(`${file}.partial`, tensors);
  renameSync(`${file}.partial`, file);
}

async function readOlder(checkpoint: string | undefined): Promise<Map<number, Float32Array>> {
  const older = new Map<number, Float32Array>();
  if (checkpoint === undefined || !existsSync(olderOf(checkpoint))) return older;
  const file = await openSafetensors(olderOf(checkpoint));
  for (const version of file.tensors.keys()) older.set(Number(version), await file.read(version));
  await file.close();
  return older;
}

/**
 * The order that an earlier run had, from the schedule.jsonl in its folder.
 * @throws {UserError} if a line is none of these, or a step is missing
 */
function readSchedule(file: string, maxSteps: number): Plan {
  if (!existsSync(file)) {
    throw new UserError(`--schedule: there is no file ${file}: name the schedule.jsonl in the folder of a run`);
  }
  const lines = readJsonLines(file, ({ step, job, switches }) => {
    if (isCount(step) && isCount(job) && areSwitches(switches, step)) return { step, job, switches };
    throw new Error(
      `expected a step, a job and switches, from position 0 on, to versions below the step, as an asynchronous run writes them; found ${shown({ step, job, switches })}`,
    );
  });
  const plans = new Map(lines.map((line) => [line.step, line]));
  for (let step = 1; step <= maxSteps; step++) {
    if (!plans.has(step))
      throw new UserError(
        `${file} has no step ${step}: resume that run to its end first, or lower --max-steps ${maxSteps} to what it has, with which the learning rate falls sooner than it did`,
      );
  }
  return (step) => plans.get(step)!;
}

const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 1;

/** Whether positions begin at 0 and rise, and versions rise, too, and were there before the step. */
function areSwitches(value: unknown, step: number): value is Switches {
  if (!Array.isArray(value) || value.length === 0) return false;
  const isPair = (one: unknown): one is [number, number] =>
    Array.isArray(one) && one.length === 2 && one.every((number) => Number.isSafeInteger(number) && number >= 0);
  if (!value.every(isPair)) return false;
  const rises = value.slice(1).every(([at, version], i) => at > value[i][0] && version > value[i][1]);
  return rises && value[0][0] === 0 && value.at(-1)![1] < step;
}

/** Samples as a plan says, in this process: nothing depends on how long anything takes. */
function createPlannedSource<T>(
  sample: Sample<T>,
  {
    state,
    tokenizer,
    from,
    older,
  }: { state: TrainingState; tokenizer: Tokenizer; from: number; older?: Map<number, Float32Array> },
  plan: Plan,
  { maxSteps }: { maxSteps: number },
): Source<T> {
  /** Weights of versions that are needed again; of each version, the last step that needs it. */
  const kept = new Map(older);
  const lastUse = new Map<number, number>();
  for (let step = from + 1; step <= maxSteps; step++) {
    for (const [, version] of plan(step).switches) if (version < step - 1) lastUse.set(version, step);
  }
  const keep = async (version: number) => {
    for (const old of kept.keys()) if ((lastUse.get(old) ?? 0) <= version) kept.delete(old);
    if (lastUse.has(version)) kept.set(version, await flatten(trainable(state.model)));
  };
  return {
    next: async (step) => {
      if (step === from + 1) await keep(from);
      const { job, switches } = plan(step);
      const made: Model[] = [];
      const weightsOf = (version: number): Model => {
        if (version === step - 1) return state.model;
        const values = kept.get(version);
        if (!values) throw new Error(`the weights after step ${version} were not kept for step ${step}`);
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
        return { job, rollouts, switches, sampler: undefined, began, ended: Date.now(), dropped: [], waiting: 0 };
      } finally {
        tf.dispose(made.map(trainable));
      }
    },
    publish: keep,
    older: () => kept,
    close: () => {},
  };
}

// ─── In processes of their own ───────────────────────────────────────────────────────────────────────────────────────

/** What a sampler sends of a batch: problems, and the rules of their tasks, are the trainer's own. */
type Sampled<T> = { rollouts: Omit<T, 'problem'>[] } & Pick<Batch<T>, 'switches' | 'refLogProbs'>;

/** The options that a sampler needs. */
type SamplerOptions = BackendOptions & {
  modelName: string;
  backend: BackendName;
  samplerBackend?: BackendName | undefined;
  samplerGpu?: string | undefined;
  samplerThreads?: number | undefined;
  inFlight?: boolean | undefined;
  klCoef: number;
  reference: 'trainer' | 'sampler';
  batchSize: number;
} & Parameters<typeof loadWithTokenizer>[1] &
  Parameters<typeof createTrainingState>[2] &
  Parameters<typeof logProbsOf>[2];

/** From the trainer's options, how a batch is sampled. */
type Begin<T, Options> = (options: Options) => Promise<Sample<T>>;

/** What a sampler has: a model, whose weights it takes from the trainer, and the reference, if it is to have that. */
async function createSampler<T extends Sequence & { problem: unknown }, Options extends SamplerOptions>(
  begin: Begin<T, Options>,
  options: Options,
) {
  const { samplerBackend = options.backend, samplerGpu: gpu, samplerThreads: threads } = options;
  try {
    await initBackend(samplerBackend, { ...options, gpu, threads });
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    throw new UserError(`of the sampler: ${error.message.replaceAll(/--(?=(backend|gpu) )/g, '--sampler-')}`);
  }
  const sample = await begin(options);
  const { model: initial, tokenizer } = await loadWithTokenizer(options.modelName, options);
  const state = await createTrainingState(initial, {}, options);
  tf.dispose([state.optimizer.m, state.optimizer.v]);
  const reference = options.klCoef > 0 && options.reference === 'sampler' ? initial : undefined;
  if (!reference) disposeModel(initial);
  let { model } = state;
  let version = -1;
  const take = (newer: Weights) => {
    const old = trainable(model);
    [model, version] = [withTrainable(model, unflatten(newer.values, old)), newer.version];
    tf.dispose(old);
  };
  /** @param update - takes newer weights in the middle of completions, if there are any */
  const work = async (
    job: number,
    { update, share }: { update?: () => boolean; share?: Share },
  ): Promise<Sampled<T>> => {
    const switches: Switches = [[0, version]];
    const acting = { ...model };
    const onProgress = ({ positions }: { positions: number }) => {
      if (!update?.()) return;
      acting.params = model.params;
      switches.push([positions, version]);
    };
    const rollouts = await sample(acting, tokenizer, job, { onProgress }, share);
    const refLogProbs = reference && (await logProbsOf(reference, rollouts, options));
    return { rollouts: rollouts.map(({ problem, ...rest }) => rest), refLogProbs, switches };
  };
  return { take, work, size: sum(Object.values(trainable(model)).map(({ size }) => size)), version: () => version };
}

/**
 * What a sampler does: it samples whatever batch the trainer asks for, with the newest weights; `inFlight`, it takes newer ones
 * in the middle of completions, too, which go on with keys and values of the older ones. Does not return.
 */
export const serveSamples = <T extends Sequence & { problem: unknown }, Options extends SamplerOptions>(
  begin: Begin<T, Options>,
): Promise<void> =>
  serveJobs<Options>(async (options, folder) => {
    const { take, work, version } = await createSampler(begin, options);
    const update = (): boolean => {
      const newer = readNewerWeights(folder, version());
      if (newer) take(newer);
      return newer !== undefined;
    };
    return async (job) => {
      update();
      return work(job, options.inFlight ? { update } : {});
    };
  });

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

/** The batches that a run has not had: those below its last one that were lost when it ended, and all that follow. */
export function* jobsAfter(used: number[]): Generator<number, never, undefined> {
  const had = new Set(used);
  for (let job = 1; ; job++) if (!had.has(job)) yield job;
}

/** Rollouts of a batch, with its problems. */
function withProblems<T extends { problem: unknown }>(rollouts: Omit<T, 'problem'>[], problems: T['problem'][]): T[] {
  const perProblem = rollouts.length / problems.length;
  return rollouts.map((rollout, i) => ({ ...rollout, problem: problems[Math.floor(i / perProblem)] }) as T);
}

/**
 * Batches from samplers, in the order in which they are finished. Those that are staler than allowed, since others overtook
 * them, are dropped.
 * @param begin - starts the samplers; what it is given is to be called when one takes another job
 */
async function createSamplerSource<T extends { problem: unknown }>(
  begin: (bytes: number, onFree: () => void) => Samplers<Sampled<T>>,
  { state, from, used, problemsOf }: Policy<T>,
  { maxSteps, maxStaleness, weightSyncSteps }: { maxSteps: number; maxStaleness: number; weightSyncSteps: number },
): Promise<Source<T>> {
  // Nothing may begin before the first weights are there.
  const flow: Flow = { outstanding: 0, isTraining: false, unpublished: Number.POSITIVE_INFINITY };
  const jobs = jobsAfter(used);
  let [made, job] = [from, jobs.next().value];
  let failure: unknown;
  const fill = () => {
    const isWanted = () => made + flow.outstanding + Number(flow.isTraining) < maxSteps;
    while (isWanted() && mayBegin(flow, maxStaleness) && samplers.tryStart(job)) {
      job = jobs.next().value;
      flow.outstanding += 1;
    }
  };
  const values = await flatten(trainable(state.model));
  const samplers = begin(values.byteLength, fill);
  samplers.publish({ version: made, values });
  flow.unpublished = 0;
  return {
    next: async (step) => {
      if (failure) throw failure; // now, when all that was learnt before is noted, and can be saved
      const dropped: Batch<T>['dropped'] = [];
      for (;;) {
        fill();
        const { result, ...taken } = await samplers.next();
        const rollouts = withProblems(result.rollouts, problemsOf(taken.job));
        flow.outstanding -= 1;
        if (step - 1 - result.switches[0][1] > maxStaleness) {
          dropped.push({ ...taken, ...result, rollouts });
          continue;
        }
        flow.isTraining = true;
        fill();
        return { ...taken, ...result, rollouts, dropped, waiting: samplers.waiting() };
      }
    },
    publish: async (step) => {
      Object.assign(flow, { isTraining: false, unpublished: flow.unpublished + 1 });
      made = step;
      try {
        if (step % weightSyncSteps === 0) {
          samplers.publish({ version: made, values: await flatten(trainable(state.model)) });
          flow.unpublished = 0;
        }
      } catch (error) {
        failure = error;
      }
      fill();
    },
    older: () => new Map(),
    close: samplers.close,
  };
}

// ─── On other machines ────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * What the ranks but 0 do below a launcher of MPI: each samples its share of a batch while rank 0 trains on the one before.
 * They meet once a step, in collective calls: nobody gets half of the weights.
 */
export async function serveRanks<T extends Sequence & { problem: unknown }, Options extends SamplerOptions>(
  communicator: Communicator,
  begin: Begin<T, Options>,
): Promise<void> {
  const setup = await fromRankZero<Options & { hubName: string }>(communicator, onlyRankZero);
  const modelName = existsSync(setup.modelName) ? setup.modelName : setup.hubName; // on another machine
  const options = { ...setup, modelName };
  const { take, work, size } = await createSampler(begin, options);
  const { rank, size: ranks } = communicator;
  const share = shard({ rank: rank - 1, size: ranks - 1 }, options.batchSize);
  for (;;) {
    const { job, version } = await fromRankZero<Round>(communicator, onlyRankZero);
    if (job === 0) return;
    const values = new Float32Array(size);
    await communicator.broadcast(new Uint8Array(values.buffer));
    take({ version, values });
    const began = Date.now();
    const sampled = await work(job, { share });
    await gather(communicator, { ...sampled, seconds: (Date.now() - began) / 1000 });
  }
}

const onlyRankZero = (): never => {
  throw new Error('it is rank 0 that says this');
};

/** What a rank has sampled, and how long that took. */
type Part<T> = Sampled<T> & { seconds: number };

/** What rank 0 says before each batch: its number, or 0 if there are no more; and how many steps the weights have made. */
type Round = { job: number; version: number };

/**
 * Batches from the other ranks. With `maxStaleness` 0 they begin one when the trainer asks for it; else the next one as soon as
 * it has this one, with weights that are a step older.
 */
async function createRankSource<T extends { problem: unknown }>(
  communicator: Communicator,
  { state, used, problemsOf }: Policy<T>,
  { maxSteps, maxStaleness, setup }: { maxSteps: number; maxStaleness: number; setup: Setup },
): Promise<Source<T>> {
  await fromRankZero(communicator, () => setup);
  const jobs = jobsAfter(used);
  let under: (Round & { began: number }) | undefined; // the batch that is being sampled
  const begin = async (version: number) => {
    const round = { job: jobs.next().value, version };
    await fromRankZero(communicator, () => round);
    const values = await flatten(trainable(state.model));
    await communicator.broadcast(new Uint8Array(values.buffer));
    under = { ...round, began: Date.now() };
  };
  const collect = async (): Promise<Part<T>[]> => {
    under = undefined;
    const [, ...parts] = await gather<Part<T> | null>(communicator, null);
    return parts as Part<T>[];
  };
  return {
    next: async (step) => {
      if (!under) await begin(step - 1);
      const { job, version, began } = under!;
      const parts = await collect();
      const ended = began + 1000 * Math.max(...parts.map(({ seconds }) => seconds)); // clocks of machines differ
      if (maxStaleness > 0 && step < maxSteps) await begin(step - 1);
      const rollouts = withProblems<T>(
        parts.flatMap(({ rollouts }) => rollouts),
        problemsOf(job),
      );
      const refLogProbs = parts[0].refLogProbs && parts.flatMap(({ refLogProbs }) => refLogProbs!);
      const switches: Switches = [[0, version]];
      return { job, rollouts, refLogProbs, switches, sampler: 0, began, ended, dropped: [], waiting: 0 };
    },
    publish: async () => {},
    older: () => new Map(),
    close: async () => {
      if (under) await collect();
      await fromRankZero<Round>(communicator, () => ({ job: 0, version: 0 }));
    },
  };
}

// ─── Any of them ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Who is in training, the steps that it has made, the batches that it has had, and what each batch asks. */
export type Policy<T extends { problem: unknown }> = {
  state: TrainingState;
  tokenizer: Tokenizer;
  from: number;
  checkpoint?: string | undefined; // that these steps were resumed from
  used: number[];
  problemsOf: (job: number) => T['problem'][];
};

/** The options that samplers are to have. `modelName`: the folder that it is in here; `hubName`: what it was called. */
type Setup = SamplerOptions & { hubName: string };

type SourceOptions = { samplers: number; maxSteps: number; maxStaleness: number; weightSyncSteps: number };

/** The options of the run whose schedule is to be repeated, if its folder is still there; but for those that say who samples. */
export function repeatedRun({ schedule }: { schedule?: string | undefined }) {
  if (schedule === undefined || basename(schedule) !== 'schedule.jsonl') return undefined;
  const experiment = 'experiment_async';
  if (readJson(join(dirname(schedule), 'config.json'))?.experiment !== experiment) return undefined;
  const { file, options } = findRun(dirname(schedule), { experiment });
  const { mode, lag, schedule: other, ...rest } = options;
  return { file, options: rest };
}

/** What a run does that has no samplers; undefined of one that has. */
export function planOf(options: {
  mode: 'sync' | 'async';
  lag?: number | undefined;
  schedule?: string | undefined;
  maxSteps: number;
}): Planning | undefined {
  const { mode, schedule, lag = mode === 'sync' ? 0 : undefined, maxSteps } = options;
  if (schedule === undefined && lag === undefined) return undefined;
  const exact = schedule === undefined ? lagging(lag!) : readSchedule(schedule, maxSteps);
  return (from, has) => {
    const steps = Array.from({ length: Math.max(0, maxSteps - from) }, (_, i) => from + 1 + i);
    const older = steps.flatMap((step) => exact(step).switches.map(([, version]) => version));
    const missing = older.find((version) => version < from && !has(version));
    if (missing === undefined) return exact;
    if (schedule === undefined) return lagging(lag!, from); // what comes first is fresher
    throw new UserError(
      `--schedule needs the weights after step ${missing}, which the checkpoint of step ${from} has not kept: resume an earlier one that repeated the schedule, or start a new run`,
    );
  };
}

/**
 * Where the batches of a run come from: this process, as is planned, other ranks, or samplers that are started.
 * @param setup - the options that samplers are to have
 */
export async function createSource<T extends { problem: unknown }>(
  sample: Sample<T>,
  policy: Policy<T>,
  {
    plan,
    setup,
    communicator,
    ...options
  }: SourceOptions & { plan: ReturnType<typeof planOf>; setup: Setup; communicator: Communicator },
): Promise<Source<T>> {
  if (plan) {
    const older = await readOlder(policy.checkpoint);
    const exact = plan(policy.from, (version) => older.has(version));
    return createPlannedSource(sample, { ...policy, older }, exact, options);
  }
  if (communicator.size > 1) return createRankSource(communicator, policy, { ...options, setup });
  const say = (line: string) => console.log(line);
  const begin = (bytes: number, onFree: () => void) =>
    startSamplers<Sampled<T>>(options.samplers, { setup, bytes, say, onFree });
  return createSamplerSource(begin, policy, options);
}
