/** The loop over the steps of a run, with all that goes on around a step: progress, logs, checkpoints, Ctrl-C. */
import { setImmediate } from 'node:timers/promises';
import { saveCheckpoint } from '../model/checkpoint.ts';
import type { FloatDtype } from '../model/safetensors.ts';
import { onInterrupt } from './interrupt.ts';
import type { Row } from './metrics.ts';
import { progress } from './progress.ts';
import type { Run } from './run_folder.ts';
import { saveTrainingState, type TrainingState } from './training_state.ts';

/** What a step has to say. */
export type StepReport = {
  /** For metrics.jsonl. */
  metrics: Record<string, number>;
  /** For completions.jsonl. */
  samples: Record<string, unknown>[];
  /** For the progress line. */
  shown: Record<string, string>;
};

export type StepsOptions = {
  modelName: string;
  maxSteps: number;
  loggingSteps: number;
  saveSteps: number;
  saveTotalLimit: number;
};

/**
 * Takes the steps that a run has left, and saves checkpoints on the way and at the end. After Ctrl-C it finishes the
 * step, saves, says how to continue, and sets the exit code to 130.
 * @param state - what the steps change
 * @param takeStep - one step, counted from 1. A step that evaluates (a metric `eval/…`) is logged in any case.
 * @returns whether the last step was reached
 */
export async function runSteps(
  run: Run,
  state: TrainingState,
  options: StepsOptions,
  takeStep: (step: number) => Promise<StepReport>,
): Promise<boolean> {
  const interrupt = onInterrupt();
  const bar = progress({ total: options.maxSteps, start: run.step, every: 10 });
  try {
    for (let step = run.step + 1; step <= options.maxSteps && !interrupt.requested(); step++) {
      const { metrics, samples, shown } = await takeStep(step);
      // Some backends answer every await at once; Node hears of Ctrl-C only when its event loop turns.
      await setImmediate();
      const due = (every: number) => every > 0 && step % every === 0;
      if (due(options.loggingSteps) || Object.keys(metrics).some((name) => name.startsWith('eval/'))) {
        run.log({ step, ...metrics });
        run.sample(samples.map((sample): Row => ({ step, ...sample })));
      }
      bar.update(step, shown);
      if (step === options.maxSteps || interrupt.requested() || due(options.saveSteps)) {
        const save = (folder: string) => saveTrainingState(folder, state, options.modelName);
        await run.saveCheckpoint(step, save, { limit: options.saveTotalLimit });
      }
    }
  } finally {
    bar.stop();
    interrupt.dispose();
  }
  if (!interrupt.requested()) return true;
  console.log(`stopped; to continue: npx tsx ${run.experiment}/train.ts --resume ${run.folder}`);
  process.exitCode = 130;
  return false;
}

/**
 * Saves final_model and the curves, and says where they are.
 * @param dtypes - how each parameter was stored in the checkpoint that the run started from
 */
export async function finishRun(
  run: Run,
  { model }: TrainingState,
  { modelName, dtypes }: { modelName: string; dtypes: Record<string, FloatDtype> },
): Promise<void> {
  const save = (folder: string) =>
    saveCheckpoint(folder, { source: modelName, params: model.params }, { dtype: dtypes });
  const folder = await run.saveFinalModel(save);
  await run.report();
  console.log(`model: ${folder}\ncurves: ${run.folder}/curves.svg`);
}
