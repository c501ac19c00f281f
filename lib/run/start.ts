/** What a run does before its first step. */
import { type BackendName, type BackendOptions, initBackend } from '../backend/index.ts';
import { type Communicator, fromRankZero, soloCommunicator } from '../distributed/communicator.ts';
import { broadcastState, shareRun } from '../distributed/state.ts';
import { readConfig } from '../model/config.ts';
import { disposeModel, type Model } from '../model/llama.ts';
import { loadWithTokenizer, locatePretrained, type Pretrained } from '../model/pretrained.ts';
import type { ChatOptions, Tokenizer } from '../model/tokenizer.ts';
import { checkPrompts } from './dataset.ts';
import { checkCompletions, checkSize, type SizeOptions } from './estimate.ts';
import type { RunPlace } from './find_run.ts';
import { changedOptions } from './options.ts';
import { modelOf, originOf, refuseOtherModel } from './origin.ts';
import { claimRun, openRun, type Run } from './run_folder.ts';
import { createTrainingState, type StateOptions, type TrainingState } from './training_state.ts';

/** Those of `createRunCommand` that count before the first step. */
export type StartOptions = Omit<RunPlace, 'experiment'> &
  Omit<StateOptions, 'resumed'> &
  BackendOptions &
  SizeOptions &
  ChatOptions & {
    backend: BackendName;
    modelName: string;
    resume?: string;
  };

/** What an experiment brings along. */
export type Task<Problem, Options> = {
  /** its folder */
  experiment: string;
  /** all of them, held-out ones included, with the place that each came from */
  problems: (Problem & { source: string })[];
  /** the token ids of a problem's prompt */
  buildPrompt: (tokenizer: Tokenizer, problem: Problem, options: Options) => number[];
  /** what else must be read or checked before the prompts are */
  prepare?: (tokenizer: Tokenizer) => void | Promise<void>;
  /** whether the initial model is needed beside the one in training */
  reference: boolean;
  /** where there are several ranks: rank 0 reads and writes for all */
  communicator?: Communicator;
};

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
  { experiment, problems, buildPrompt, prepare, ...task }: Task<Problem, Options>,
): Promise<Started> {
  checkCompletions(options);
  const communicator = task.communicator ?? soloCommunicator();
  const backend = await initBackend(options.backend, options);
  const place = { experiment, ...options };
  const resumed = communicator.rank === 0 && options.resume ? claimRun(options.resume, place) : undefined;
  const named = await fromRankZero(communicator, () => modelOf(resumed, options.modelName));
  // If it must be fetched, then once.
  const located = await fromRankZero(communicator, () => locatePretrained(named.name, named));
  const notes = checkSize(await readConfig(located.folder), options);
  const origin = communicator.rank === 0 ? await originOf(located) : undefined;
  if (resumed && origin) refuseOtherModel(resumed, origin, options.modelName);
  const { model: initial, tokenizer, notices } = await loadWithTokenizer(named.name, { ...options, ...named });
  await prepare?.(tokenizer);
  const prompts = problems.map((problem) => ({
    source: problem.source,
    prompt: buildPrompt(tokenizer, problem, options),
  }));
  checkPrompts(prompts, initial.config, options);
  const state = await createTrainingState(initial, { tokens: 0, skipped: 0 }, { ...options, resumed });
  await broadcastState(communicator, state);

  const saved = task.communicator ? { ...options, nproc: communicator.size } : options;
  const resume = resumed?.checkpoint ?? resumed?.folder; // by its name: what is "latest" may be another run by now
  const run = await shareRun(communicator, () => openRun({ ...place, resume, options: saved, origin }));
  const lines = [
    `backend: ${backend}`,
    ...(task.communicator ? [`ranks: ${communicator.size}`] : []),
    `run: ${run.folder}${run.step > 0 ? `, from step ${run.step}` : ''}`,
    ...(resumed ? changedOptions(resumed.options, saved, { complete: resumed.origin !== undefined }) : []),
    ...notes,
    ...notices,
  ];
  if (!run.silent) console.log(lines.join('\n'));
  if (!task.reference) disposeModel(initial);
  const { folder, dtypes } = initial;
  return { run, state, tokenizer, reference: task.reference ? initial : undefined, source: { folder, dtypes } };
}
