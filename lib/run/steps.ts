/** The loop over the steps of a run, with all that goes on around a step: progress, logs, checkpoints, Ctrl-C. */
import { setImmediate } from 'node:timers/promises';
import { saveCheckpoint } from '../model/checkpoint.ts';
import { mergeLora, writeLora } from '../model/lora.ts';
import type { Pretrained } from '../model/pretrained.ts';
import { onInterrupt, sayOnInterrupt } from './interrupt.ts';
import type { Row } from './metrics.ts';
import { duration, progress } from './progress.ts';
import type { Run } from './run_folder.ts';
import { saveTrainingState, type TrainingState } from './training_state.ts';

/** What a step has to say: metrics for metrics.jsonl, samples for completions.jsonl. */
export type StepReport = { metrics: Record<string, number>; samples: Record<string, unknown>[] };

export type StepsOptions = {
  /** of the checkpoint that the run started from */
  folder: string;
  maxSteps: number;
  loggingSteps: number;
  saveSteps: number;
  saveTotalLimit: number;
  /** evaluate every so many steps; 0: before the first and after the last only */
  evalSteps: number;
  /** what the policy can do, as metrics `eval/…`; thoroughly before the first step and after the last */
  evaluate: (thorough: boolean) => Promise<Record<string, number>>;
  /** what the progress line shows: label and name of each metric, at its newest value */
  shown: Record<string, string>;
  /** whether to stop, where several processes must agree: each says whether it was asked to, all get the same answer */
  agree?: (asked: boolean) => Promise<boolean>;
};

/**
 * Takes the steps that a run has left, evaluates before the first one and on the way, and saves checkpoints on the way and
 * at the end. After Ctrl-C it finishes the step, saves, says how to continue, and sets the exit code to 130.
 * @param state - what the steps change
 * @param takeStep - one step, counted from 1
 * @returns whether the last step was reached
 */
export async function runSteps(
  run: Run,
  state: TrainingState,
  { shown, evaluate, agree = async (asked) => asked, ...options }: StepsOptions,
  takeStep: (step: number) => Promise<StepReport>,
): Promise<boolean> {
  if (!run.checkpoint && !run.silent) await logStart(run, evaluate);
  const newest: Record<string, unknown> = Object.assign({}, ...run.history());
  const interrupt = run.silent ? undefined : onInterrupt();
  const bar = run.silent ? undefined : progress({ total: options.maxSteps, start: run.step, every: 10 });
  let done = run.step;
  let stop = await agree(interrupt?.requested() ?? false);
  if (done >= options.maxSteps && !run.silent) {
    console.log(`this run has made its ${done} steps already; a larger --max-steps continues it`);
  }
  try {
    while (done < options.maxSteps && !stop) {
      const step = done + 1;
      const began = performance.now();
      const due = (every: number) => every > 0 && step % every === 0;
      const isLast = step === options.maxSteps;
      const { metrics, samples } = await takeStep(step);
      const evaluates = !run.silent && (isLast || due(options.evalSteps));
      if (evaluates) Object.assign(metrics, await evaluate(isLast));
      state.counters.seconds = (state.counters.seconds ?? 0) + (performance.now() - began) / 1000;
      // Some backends answer every await at once; Node hears of Ctrl-C only when its event loop turns.
      await setImmediate();
      stop = await agree(interrupt?.requested() ?? false);
      if (evaluates || due(options.loggingSteps)) {
        run.log({ step, ...metrics });
        run.sample(samples.map((sample): Row => ({ step, ...sample })));
      }
      Object.assign(newest, metrics);
      const fields = Object.entries(shown).map(([label, name]) => [label, briefly(newest[name])]);
      bar?.update(step, Object.fromEntries(fields));
      if (isLast || stop || due(options.saveSteps)) {
        const save = (folder: string) => saveTrainingState(folder, state, options.folder);
        await run.saveCheckpoint(step, save, { limit: options.saveTotalLimit });
        stop = await agree(interrupt?.requested() ?? false);
      }
      done = step;
    }
  } finally {
    bar?.stop();
    interrupt?.dispose();
  }
  if (done >= options.maxSteps) return true;
  if (!run.silent) console.log(`stopped; ${toGoOn('continue', run)}`);
  process.exitCode = 130;
  return false;
}

/** What there is to say before the first step. Ctrl-C ends the process here: there is nothing yet that could be lost. */
async function logStart(run: Run, evaluate: StepsOptions['evaluate']): Promise<void> {
  const dispose = sayOnInterrupt(`stopped before the first step, nothing is saved yet; ${toGoOn('start again', run)}`);
  try {
    run.log({ step: 0, ...(await evaluate(true)) });
  } finally {
    dispose();
  }
}

const toGoOn = (what: string, { experiment, folder }: Run): string =>
  `to ${what}: npx tsx ${experiment}/train.ts --resume ${folder}`;

/** Three digits are enough to see where it goes; whole numbers stay whole. */
const briefly = (value: unknown): string =>
  typeof value !== 'number' ? '–' : value >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)));

/**
 * Saves final_model and the curves, and says where they are, and what every evaluation gave before and after. Of a policy
 * with an adapter, final_model is the adapter, or with `mergeAdapter` the whole model with the adapter merged into it.
 * @param initial - the checkpoint that the run started from: its folder, and how it stores each parameter
 */
export async function finishRun(
  run: Run,
  { model, counters }: TrainingState,
  {
    folder: source,
    dtypes,
    mergeAdapter,
  }: Pick<Pretrained, 'folder' | 'dtypes'> & { mergeAdapter?: boolean | undefined },
): Promise<void> {
  if (run.silent) return;
  const save = (folder: string) =>
    model.lora && !mergeAdapter
      ? writeLora(folder, model.lora)
      : saveCheckpoint(folder, { source, params: mergeLora(model) }, { dtype: dtypes });
  const folder = await run.saveFinalModel(save);
  await run.report();
  const rows = run.history();
  const [before, after] = [rows[0], rows.at(-1)!];
  for (const name of Object.keys(after).filter((name) => name.startsWith('eval/') && name in before)) {
    console.log(`${name}: ${briefly(before[name])} → ${briefly(after[name])}`);
  }
  console.log(`training time: ${duration(counters.seconds ?? 0)}`);
  console.log(`model: ${folder}\ncurves: ${run.folder}/curves.svg`);
}
