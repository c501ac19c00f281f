/** The loop over the steps of a run, with all that goes on around a step: progress, logs, checkpoints, Ctrl-C. */
import { setImmediate } from 'node:timers/promises';
import { dtypeNamed, type SaveDtype, saveCheckpoint } from '../model/checkpoint.ts';
import { mergeLora, writeLora } from '../model/lora.ts';
import type { Pretrained } from '../model/pretrained.ts';
import { roundingLoss } from '../model/rounding.ts';
import { mistakeIn, quoted } from './errors.ts';
import { answerLines, type Sample, sampleLine, type Watch, watchEvaluation } from './evaluation.ts';
import { onInterrupt, sayOnInterrupt } from './interrupt.ts';
import type { Row } from './metrics.ts';
import { briefly, duration, type Progress, progress } from './progress.ts';
import type { Run } from './run_folder.ts';
import { saveTrainingState, type TrainingState } from './training_state.ts';

/** What a step has to say: metrics for metrics.jsonl, samples for completions.jsonl. */
export type StepReport = { metrics: Record<string, number>; samples: Sample[] };

/** How held-out questions are asked for the texts of their answers: greedily, which depends on no step. */
const GREEDY = { numGenerations: 1, temperature: 0, step: 0 };

/** Samples of each held-out question before the first step and after the last: in between there are none. */
const PASS_AT = 8;

/** What an experiment brings along beside its steps. */
export type Around = {
  /** what the progress line shows: label and name of each metric, at its newest value */
  shown: Record<string, string>;
  /** held-out questions; 0: nothing is ever evaluated */
  heldOut: number;
  /** what the policy can do, as metrics `eval/…`: of greedy answers, and of `samples` more of each held-out question */
  evaluate: (how: Watch & { samples: number }) => Promise<Record<string, number>>;
  /** answers to a few held-out questions, to be shown before and after */
  ask: (how: typeof GREEDY) => Promise<Sample[]>;
  /** whether to stop, where several processes must agree: each says whether it was asked to, all get the same answer */
  agree?: (asked: boolean) => Promise<boolean>;
};

export type StepsOptions = Around & {
  /** of the checkpoint that the run started from */
  folder: string;
  maxSteps: number;
  loggingSteps: number;
  saveSteps: number;
  saveTotalLimit: number;
  /** evaluate every so many steps; 0: before the first and after the last only */
  evalSteps: number;
  /** whether to evaluate before the first step, too */
  evalOnStart: boolean;
  maxNewTokens: number;
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
  { shown, agree = async (asked) => asked, ...options }: StepsOptions,
  takeStep: (step: number) => Promise<StepReport>,
): Promise<boolean> {
  const bar = run.silent ? undefined : progress({ total: options.maxSteps, start: run.step, every: 10 });
  let interrupt: ReturnType<typeof onInterrupt> | undefined;
  let done = run.step;
  try {
    if (bar && !run.checkpoint) await logStart(run, bar, options);
    const newest: Record<string, unknown> = Object.assign({}, ...run.history());
    const fields = () =>
      Object.entries(shown).flatMap(([label, name]) => (name in newest ? [[label, briefly(newest[name])]] : []));
    interrupt = run.silent ? undefined : onInterrupt();
    let stop = await agree(interrupt?.requested() ?? false);
    if (done >= options.maxSteps)
      bar?.log(`this run has made its ${done} steps already; a larger --max-steps continues it`);
    if (done < options.maxSteps) bar?.note(`step ${done + 1}`); // which may take minutes
    let nextSample = done;
    while (done < options.maxSteps && !stop) {
      const step = done + 1;
      const began = performance.now();
      const due = (every: number) => every > 0 && step % every === 0;
      const isLast = step === options.maxSteps;
      const { metrics, samples } = await takeStep(step);
      for (const note of state.notes?.splice(0) ?? []) bar?.log(`step ${step}: ${note}`);
      const evaluates = bar && options.heldOut > 0 && (isLast || due(options.evalSteps));
      if (evaluates) Object.assign(metrics, await evaluate(bar, options, { thorough: isLast }));
      state.counters.seconds = (state.counters.seconds ?? 0) + (performance.now() - began) / 1000;
      // Some backends answer every await at once; Node hears of Ctrl-C only when its event loop turns.
      await setImmediate();
      stop = await agree(interrupt?.requested() ?? false);
      if (evaluates || due(options.loggingSteps)) {
        run.log({ step, ...metrics });
        run.sample(samples.map((sample): Row => ({ step, ...sample })));
      }
      if (evaluates && isLast) run.answer({ step, answers: await options.ask(GREEDY) });
      if (samples.length > 0 && step > nextSample) {
        bar?.log(sampleLine(samples[0]));
        nextSample = step + options.maxSteps / SAMPLES;
      }
      Object.assign(newest, metrics);
      bar?.update(step, Object.fromEntries(fields()));
      if (isLast || stop || due(options.saveSteps)) {
        const save = (folder: string) => saveTrainingState({ ...run, folder, step }, state, options.folder);
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

/** Samples that a run shows on its way, about. */
const SAMPLES = 10;

type Evaluating = Pick<StepsOptions, 'heldOut' | 'maxNewTokens' | 'evaluate' | 'ask'>;

/** The metrics of an evaluation, whose progress is shown meanwhile. */
function evaluate(
  bar: Progress,
  { heldOut, maxNewTokens, ...options }: Evaluating,
  { thorough, advice }: { thorough: boolean; advice?: (time: string) => string },
): Promise<Record<string, number>> {
  const samples = thorough ? PASS_AT : 0;
  const watch = watchEvaluation(heldOut * (1 + samples), bar, { maxNewTokens, advice });
  return options.evaluate({ samples, ...watch });
}

/** What there is to say before the first step. Ctrl-C ends the process here: there is nothing yet that could be lost. */
async function logStart(
  run: Run,
  bar: Progress,
  options: Evaluating & Pick<StepsOptions, 'evalOnStart'>,
): Promise<void> {
  if (options.heldOut === 0 || !options.evalOnStart) return;
  const dispose = sayOnInterrupt(`stopped before the first step, nothing is saved yet; ${toGoOn('start again', run)}`);
  const advice = (time: string) =>
    `the evaluation before the first step takes up to ${time} more: --no-eval-on-start leaves it out, --eval-size asks fewer questions than ${options.heldOut}`;
  try {
    const metrics = await evaluate(bar, options, { thorough: true, advice });
    run.log({ step: 0, ...metrics });
    run.answer({ step: 0, answers: await options.ask(GREEDY) });
  } finally {
    dispose();
  }
}

const toGoOn = (what: string, { experiment, folder }: Run): string =>
  `to ${what}: npx tsx ${experiment}/train.ts --resume ${quoted(folder)}`;

/**
 * Saves final_model and the curves, and says where they are, what every evaluation gave before and after, and what rounding
 * took away. Of a policy with an adapter, final_model is the adapter, or with `mergeAdapter` the whole model with the
 * adapter merged into it.
 * @param initial - the checkpoint that the run started from: its folder, and how it stores each parameter
 * @param options.saveDtype - how a whole model is stored; `auto` as the initial one is
 */
export async function finishRun(
  run: Run,
  { model, counters }: TrainingState,
  {
    folder: source,
    dtypes,
    mergeAdapter,
    saveDtype = 'auto',
  }: Pick<Pretrained, 'folder' | 'dtypes'> & { mergeAdapter?: boolean | undefined; saveDtype?: SaveDtype },
): Promise<void> {
  if (run.silent) return;
  const adapter = mergeAdapter ? undefined : model.lora;
  const params = adapter ? {} : mergeLora(model);
  const dtype = dtypeNamed(saveDtype) ?? dtypes;
  const folder = await run.saveFinalModel((folder) =>
    adapter ? writeLora(folder, adapter) : saveCheckpoint(folder, { source, params }, { dtype }),
  );
  await run.report();
  const rows = run.history();
  const [before, after] = [rows.find(({ step }) => step === 0), rows.at(-1)!];
  for (const name of Object.keys(after).filter((name) => name.startsWith('eval/'))) {
    console.log(`${name}: ${before && name in before ? `${briefly(before[name])} → ` : ''}${briefly(after[name])}`);
  }
  for (const line of answerLines(run.answers())) console.log(line);
  if (counters.skipped > 0) console.log(`updates that were skipped: ${counters.skipped}`);
  console.log(`training time: ${duration(counters.seconds ?? 0)}`);
  console.log(`model: ${folder}\ncurves: ${run.folder}/curves.svg`);
  await sayRounding(run, roundingLoss(params, { source, dtype }));
}

/** Says what was rounded away of a final_model in 16 bits, which is not quite the policy that was evaluated. */
async function sayRounding(run: Run, loss: Promise<number>): Promise<void> {
  const lost = await loss.catch((error) => {
    if (mistakeIn(error)) return Number.NaN; // the initial weights were moved since
    throw error;
  });
  if (lost === 0) return;
  const share = Number.isNaN(lost) ? 'an unknown share' : `${briefly(100 * lost)} %`;
  const advice = lost < 0.1 ? '' : `; ${toGoOn('store all of it', run)} --save-dtype float32`;
  console.log(
    `final_model has 16-bit weights: rounding took away ${share} of what training changed (as a norm), after the last evaluation${advice}`,
  );
}
