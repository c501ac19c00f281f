/** What a run does before its first step. */
import * as tf from '@tensorflow/tfjs';
import { hardwareGpu } from '../backend/gpus.ts';
import { type BackendName, type BackendOptions, initBackend } from '../backend/index.ts';
import { loadWithTokenizer, locatePretrained, type Pretrained, withTokenizer } from '../checkpoint/pretrained.ts';
import type { ChatOptions, Tokenizer } from '../checkpoint/tokenizer.ts';
import { type Communicator, fromRankZero, soloCommunicator } from '../distributed/communicator.ts';
import { broadcastState } from '../distributed/state.ts';
import { checkPrompts } from '../environments/dataset.ts';
import { UserError } from '../errors.ts';
import { readConfig } from '../model/config.ts';
import { disposeModel, type Model } from '../model/model.ts';
import type { TrainingState } from '../training/state.ts';
import { checkCompletions, checkSize, type SizeOptions } from './estimate.ts';
import { takeFasterGpu } from './faster_gpu.ts';
import type { RunPlace } from './find_run.ts';
import { modelOf, originOf, refuseOtherModel } from './origin.ts';
import { createReporters, type ReporterOptions } from './reporters.ts';
import { createRun, type Run, type RunHooks, type StepOptions } from './run.ts';
import { claimRun, openRun, shareRun } from './run_folder.ts';
import { changedOptions, refuseOtherOptions } from './saved_options.ts';
import { createTrainingState, type StateOptions } from './training_state.ts';

/** Those of `createRunCommand` that count before the first step. */
export type StartOptions = Omit<RunPlace, 'experiment'> &
  Omit<StateOptions, 'resumed'> &
  BackendOptions &
  SizeOptions &
  StepOptions &
  ReporterOptions &
  ChatOptions & {
    backend: BackendName;
    modelName: string;
    resume?: string;
  };

/** What an experiment brings along. */
export type Task<Problem, Options> = {
  /** its folder */
  experiment: string;
  /** what is trained on, with the place that each problem came from */
  train: (Problem & { source: string })[];
  /** what is held out; if that is nothing, nothing is ever evaluated */
  test: (Problem & { source: string })[];
  /** the option that says how many are held out, if that is not --eval-size */
  heldOutOption?: string;
  /** the token ids of a problem's prompt */
  buildPrompt: (tokenizer: Tokenizer, problem: Problem, options: Options) => number[];
  /** what else must be read or checked before the prompts are */
  prepare?: (tokenizer: Tokenizer) => void | Promise<void>;
  /** the initial model, where it is loaded already, which stays the caller's; `modelName` says where it came from */
  initial?: Pretrained;
  /** another tokenizer than the model's own */
  tokenizer?: Tokenizer | undefined;
  /** names of other models on which the run depends: with others in their place it is not continued */
  others?: string[];
  /** options on which the meaning of metrics depends: with other values the run is not continued */
  kept?: string[];
  /** whether `--backend auto` decides before the model is known, and not again: others that compute depend on it */
  keepsBackend?: boolean;
  /** whether the initial model is needed beside the one in training */
  reference: boolean;
  /** what the progress line shows: label and name of each metric, at its newest value */
  shown: Record<string, string>;
  /** where there are several ranks: rank 0 reads and writes for all */
  communicator?: Communicator;
} & RunHooks;

/** A run that is ready for its next step. */
export type Started = {
  run: Run;
  state: TrainingState;
  tokenizer: Tokenizer;
  /** the initial model, if it was asked for */
  reference: Model | undefined;
  /** where the initial model came from: its folder, and how it stores each parameter */
  source: Pick<Pretrained, 'folder' | 'dtypes'>;
};

/**
 * Starts a run, or continues the one that `options.resume` names, and says where it is. Everything is read before anything
 * is written: a mistake up to there changes nothing.
 * @param options - as they were parsed; the run's folder keeps them
 * @throws {UserError} for a size, backend, model, prompt, checkpoint or folder that cannot be used
 */
export async function startRun<Problem, Options extends StartOptions>(
  options: Options,
  { experiment, train, test, buildPrompt, prepare, ...task }: Task<Problem, Options>,
): Promise<Started> {
  checkCompletions(options);
  const communicator = task.communicator ?? soloCommunicator();
  if (communicator.size > options.batchSize) {
    throw new UserError(
      `${communicator.size} ranks share the ${options.batchSize} prompts of a step: start at most as many, or raise --batch-size`,
    );
  }
  const backend = await initBackend(options.backend, options);
  const place = { experiment, ...options };
  const resumed = communicator.rank === 0 && options.resume ? claimRun(options.resume, place) : undefined;
  if (resumed && resumed.step > options.maxSteps) {
    throw new UserError(
      `--max-steps ${options.maxSteps} is less than the ${resumed.step} steps that ${resumed.folder} has made: pass at least as many, or resume an earlier checkpoint`,
    );
  }
  if (resumed) refuseOtherOptions(resumed, options, task.kept ?? []);
  const named = await fromRankZero(communicator, () => modelOf(resumed, options.modelName));
  // If it must be fetched, then once.
  const located = await fromRankZero(communicator, () => locatePretrained(named.name, named));
  const notes = checkSize(await readConfig(located.folder), options);
  const others = await Promise.all((task.others ?? []).map((name) => locatePretrained(name)));
  const origin = communicator.rank === 0 ? await originOf(located, others) : undefined;
  if (resumed && origin) refuseOtherModel(resumed, origin, options.modelName);
  const loading = task.initial
    ? withTokenizer(task.initial, { ...options, tokenizer: task.tokenizer })
    : loadWithTokenizer(named.name, { ...options, ...named, tokenizer: task.tokenizer });
  const { model: initial, tokenizer, notices } = await loading;
  await prepare?.(tokenizer);
  const prompts = [...train, ...test].map((problem) => ({
    source: problem.source,
    prompt: buildPrompt(tokenizer, problem, options),
  }));
  checkPrompts(prompts, initial.config, options);
  const notable = [...notes, ...notices, ...onPrompts(prompts)];
  const state = await createTrainingState(initial, { tokens: 0, skipped: 0 }, { ...options, resumed });
  await broadcastState(communicator, state);
  // Ranks, or runs side by side, would have to share the GPU; what a caller has made stays where it is, and so does a run that
  // goes on.
  const isAlone = communicator.size === 1 && process.env.TFJS_GPU_TRIAL !== 'off';
  const isFree = isAlone && !task.keepsBackend && !task.initial && !resumed;
  const moved =
    options.backend === 'auto' && isFree ? await takeFasterGpu(state.model, hardwareGpu, backend, options) : undefined;

  const saved = {
    ...options,
    ...(moved && { backend: tf.getBackend() as BackendName }), // where it goes on, whatever is faster then
    ...(task.communicator && { nproc: communicator.size }),
  };
  const resume = resumed?.checkpoint ?? resumed?.folder; // by its name: what is "latest" may be another run by now
  const folder = await shareRun(communicator, () => openRun({ ...place, resume, options: saved, origin }));
  const lines = [
    `backend: ${moved ?? backend}`,
    ...(task.communicator ? [`ranks: ${communicator.size}`] : []),
    `run: ${folder.folder}${folder.step > 0 ? `, from step ${folder.step}` : ''}`,
    ...(resumed ? changedOptions(resumed.options, saved, { complete: resumed.origin !== undefined }) : []),
    ...notable,
  ];
  if (!folder.silent) console.log(lines.join('\n'));
  // A run that goes on from a checkpoint has kept them already.
  if (!folder.checkpoint) for (const text of notable) folder.notice({ step: 0, rule: 'start', text });
  if (!task.reference && !task.initial) disposeModel(initial);
  const reporters = folder.silent ? [] : await createReporters(saved, folder);
  const context = { ...task, heldOut: test.length, source: initial, tokenizer, communicator, reporters };
  const run = createRun(folder, state, context, options);
  return { run, state, tokenizer, reference: task.reference ? initial : undefined, source: initial };
}

/** A line about prompts that do not differ, whatever the problem. */
function onPrompts(prompts: { prompt: number[] }[]): string[] {
  const different = new Set(prompts.map(({ prompt }) => prompt.join()));
  if (prompts.length < 2 || different.size > 1) return [];
  return [
    `all ${prompts.length} prompts are the same: is the question in --question-column, and does the chat template show it?`,
  ];
}
