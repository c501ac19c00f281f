/** A run under way: its steps, and all that goes on around a step: progress, logs, checkpoints, Ctrl-C, the end. */
import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import type { Pretrained } from '../checkpoint/pretrained.ts';
import type { Tokenizer } from '../checkpoint/tokenizer.ts';
import { agree, type Communicator } from '../distributed/communicator.ts';
import type { TrainingState } from '../training/state.ts';
import { type Asking, type Evaluation, type Sample, sampleLine, watchEvaluation } from './evaluation.ts';
import { type FinalModelOptions, finishRun } from './final_model.ts';
import { onInterrupt, sayOnInterrupt } from './interrupt.ts';
import type { LogEntry, Reporter } from './metrics.ts';
import { noticed } from './notices.ts';
import { withPieces } from './pieces.ts';
import { briefly, type Progress, progress } from './progress.ts';
import { asMarkdown } from './reporters.ts';
import { howToResume, type RunFolder } from './run_folder.ts';
import { saveTrainingState } from './training_state.ts';

/** Asks held-out questions. */
type Ask = (how: Asking) => Promise<Evaluation>;

/** One step of a run, of which the script decides what is done in which order. */
type Step = {
  /** from 1 */
  number: number;
  isLast: boolean;
  /** when it began, as `performance.now()` gives it */
  began: number;
  /** Notes metrics, for metrics.jsonl, and samples, for completions.jsonl. */
  log: (metrics: Record<string, number>, samples?: Sample[]) => void;
  /** Asks held-out questions and logs what comes of it, if `--eval-steps` says so; thoroughly after the last step. */
  evaluate: (ask: Ask) => Promise<void>;
};

export type Run = {
  /** where it is written */
  folder: RunFolder;
  /** Whether another process writes this run: nothing is written, shown or said here. */
  silent: boolean;
  /** Evaluates before the first step, unless it was made already, or `--no-eval-on-start` or `--eval-size 0` say no. */
  evaluateFirst: (ask: Ask) => Promise<void>;
  /**
   * The steps that are left. What a step has logged is written when the next one is asked for; so are checkpoints. After
   * the last one the model is saved. After Ctrl-C there is no further step: the state is saved, the user is told how to go
   * on, and the exit code is 130.
   */
  steps: () => AsyncGenerator<Step, void, undefined>;
};

/** Those of `createRunCommand` that count while steps are taken. */
export type StepOptions = FinalModelOptions & {
  maxSteps: number;
  loggingSteps: number;
  saveSteps: number;
  saveTotalLimit: number;
  /** evaluate every so many steps; 0: before the first and after the last only */
  evalSteps: number;
  evalOnStart: boolean;
  /** samples of each held-out question before the first step and after the last: in between there are none */
  evalSamples: number;
  maxNewTokens: number;
  numGenerations: number;
  batchSize: number;
  learningRate: number;
};

/** What an experiment says of its run. */
export type RunContext = {
  /** what the progress line shows: label and name of each metric, at its newest value */
  shown: Record<string, string>;
  /** held-out questions; 0: nothing is ever evaluated */
  heldOut: number;
  /** the option that says how many these are */
  heldOutOption?: string;
  /** the model that the run started from: its folder, and how it stores each parameter */
  source: Pick<Pretrained, 'folder' | 'dtypes'>;
  /** what the tokens of samples are written with */
  tokenizer: Pick<Tokenizer, 'decode'>;
  /** the ranks that take the steps together */
  communicator: Communicator;
  /** what else is told of all that is logged */
  reporters?: Reporter[];
} & RunHooks;

/** What a program of one's own may want of a run. */
export type RunHooks = {
  /** is waited for after each step, and whatever it says, the step has been made */
  onStep?: (made: { step: number; metrics: Record<string, number>; samples: Sample[] }) => void | Promise<void>;
  /** after each checkpoint */
  onSave?: (saved: { step: number; folder: string }) => void | Promise<void>;
  /** ends the run as Ctrl-C does: after the step under way, which is saved */
  signal?: AbortSignal;
};

/** Samples that a run shows on its way, about. */
const SAMPLES = 10;

/**
 * @param folder - where the run is written, and the step that it is at
 * @param state - what the steps change
 */
export function createRun(folder: RunFolder, state: TrainingState, context: RunContext, options: StepOptions): Run {
  const { heldOut, heldOutOption = '--eval-size', source, tokenizer, communicator, reporters = [] } = context;
  let opened: Progress | undefined; // one bar for all; a rank that is silent has none
  const openBar = () => {
    if (!folder.silent) opened ??= progress({ total: options.maxSteps, start: folder.step, every: 10 });
    return opened;
  };
  const watch = (bar: Progress, samples: number, advice?: (time: string) => string): Asking => ({
    samples,
    ...watchEvaluation(heldOut * (1 + samples), bar, { ...options, advice }),
  });

  // What was said before a run was interrupted is not said again.
  const entries = folder.history();
  const said = new Set(folder.notices().map(({ rule }) => String(rule)));
  /** Says once what there is to notice, and keeps it. */
  function look(step: number): void {
    const { eosTokenIds } = state.model.config;
    for (const { rule, text } of noticed({ entries, since: folder.step, eosTokenIds, ...options }, said)) {
      said.add(rule);
      folder.notice({ step, rule, text });
      openBar()?.log(`noticed at step ${step}: ${text}`);
    }
  }

  async function evaluateFirst(ask: Ask): Promise<void> {
    const isDue = !folder.checkpoint && heldOut > 0 && options.evalOnStart;
    const bar = isDue ? openBar() : undefined;
    if (!bar) return;
    const dispose = sayOnInterrupt(
      `stopped before the first step, nothing is saved yet; to start again: ${howToResume(folder)}`,
    );
    const advice = (time: string) =>
      `the evaluation before the first step takes up to ${time} more: --no-eval-on-start leaves it out, ${heldOutOption} asks fewer questions than ${heldOut}`;
    try {
      const { metrics, answers } = await ask(watch(bar, options.evalSamples, advice));
      write(0, { metrics, samples: [], answers, isLogged: true });
    } catch (error) {
      bar.stop();
      throw error;
    } finally {
      dispose();
    }
  }

  /** Begins a step: what the script is given, and what it will have noted. */
  function beginStep(number: number, bar: Progress | undefined): { step: Step; noted: Noted } {
    const isLast = number === options.maxSteps;
    const evaluates = bar && heldOut > 0 && (isLast || isDue(number, options.evalSteps)) ? bar : undefined;
    const noted: Noted = { metrics: {}, samples: [], isLogged: isLast || isDue(number, options.loggingSteps) };
    const step: Step = {
      number,
      isLast,
      began: performance.now(),
      log: (metrics, samples = []) => {
        Object.assign(noted.metrics, metrics);
        noted.samples.push(...samples);
      },
      evaluate: async (ask) => {
        if (!evaluates) return;
        try {
          const { metrics, answers } = await ask(watch(evaluates, isLast ? options.evalSamples : 0));
          Object.assign(noted.metrics, metrics);
          noted.isLogged = true;
          if (isLast) noted.answers = answers;
        } catch (error) {
          noted.failure = error; // the step has been made: it is written before this ends the run
        }
      },
    };
    return { step, noted };
  }

  /** Writes what a step has noted. */
  function write(number: number, { metrics, samples, answers, isLogged }: Noted): void {
    if (isLogged) {
      const entry = { step: number, ...metrics };
      folder.log(entry);
      entries.push(entry);
      folder.sample(samples.map((sample): LogEntry => ({ step: number, ...withPieces(sample, tokenizer) })));
      for (const reporter of reporters) reporter.log(entry);
      if (samples.length > 0)
        for (const reporter of reporters) reporter.text(number, 'completions', asMarkdown(samples));
    }
    if (answers) folder.answer({ step: number, answers: answers.map((answer) => withPieces(answer, tokenizer)) });
    if (isLogged) look(number);
  }

  async function* steps(): AsyncGenerator<Step, void, undefined> {
    const bar = openBar();
    const show = createDisplay(bar, { ...folder, entries }, context, options);
    const interrupt = folder.silent ? undefined : onInterrupt();
    const isAsked = () => agree(communicator, (interrupt?.requested() ?? false) || (context.signal?.aborted ?? false));
    let [done, saved] = [folder.step, folder.step];
    const fingerprint = () => JSON.stringify([state.optimizer.step, state.counters]);
    let settled = fingerprint(); // of the state after `done` steps
    const save = async (number: number) => {
      const write = (dir: string) => saveTrainingState({ ...folder, folder: dir, step: number }, state, source.folder);
      await folder.saveCheckpoint(number, write, { limit: options.saveTotalLimit });
      saved = number;
      await context.onSave?.({ step: number, folder: join(folder.folder, `checkpoint-${number}`) });
    };
    try {
      let stop = await isAsked();
      if (done >= options.maxSteps)
        bar?.log(`this run has made its ${done} steps already; a larger --max-steps continues it`);
      while (done < options.maxSteps && !stop) {
        const { step, noted } = beginStep(done + 1, bar);
        yield step;
        for (const note of state.notes?.splice(0) ?? []) bar?.log(`step ${step.number}: ${note}`);
        state.counters.seconds = (state.counters.seconds ?? 0) + (performance.now() - step.began) / 1000;
        // Some backends answer every await at once; Node hears of Ctrl-C only when its event loop turns.
        await setImmediate();
        stop = await isAsked();
        write(step.number, noted);
        show(step.number, noted);
        [done, settled] = [step.number, fingerprint()];
        if ('failure' in noted) throw noted.failure;
        if (context.onStep) {
          await context.onStep({ step: step.number, metrics: noted.metrics, samples: noted.samples });
          stop = await isAsked();
        }
        if (step.isLast || stop || isDue(step.number, options.saveSteps)) {
          await save(step.number);
          stop = await isAsked();
        }
      }
    } finally {
      // A step that failed before it changed anything, because of a reward, say, takes none of those before it along.
      if (settled === fingerprint() && done > saved) {
        await save(done).catch(() => {}); // the error that ended the step is the one to tell
        if (saved === done) bar?.log(`the ${done} steps before are saved; to continue: ${howToResume(folder)}`);
      }
      await Promise.all(reporters.map((reporter) => reporter.close(done >= options.maxSteps)));
      bar?.stop();
      interrupt?.dispose();
    }
    if (done >= options.maxSteps) await finishRun(folder, state, source, options);
    else await endInterrupted(folder, done, interrupt?.requested() ?? false);
    await communicator.barrier(); // all leave together
  }

  return { folder, silent: folder.silent, evaluateFirst, steps };
}

/** What a step has noted so far. */
type Noted = {
  metrics: Record<string, number>;
  samples: Sample[];
  answers?: Sample[];
  isLogged: boolean;
  /** what went wrong in the evaluation */
  failure?: unknown;
};

const isDue = (number: number, every: number): boolean => every > 0 && number % every === 0;

/** Shows how far the run is after each step, and now and then a sample of it. */
function createDisplay(
  bar: Progress | undefined,
  { step, entries }: Pick<RunFolder, 'step'> & { entries: LogEntry[] },
  { shown }: RunContext,
  { maxSteps }: StepOptions,
): (number: number, noted: Noted) => void {
  const newest: Record<string, unknown> = Object.assign({}, ...entries);
  let nextSample = step;
  return (number, { metrics, samples }) => {
    if (samples.length > 0 && number > nextSample) {
      bar?.log(sampleLine(samples[0]));
      nextSample = number + maxSteps / SAMPLES;
    }
    Object.assign(newest, metrics);
    const fields = Object.entries(shown).filter(([, name]) => name in newest);
    bar?.update(number, Object.fromEntries(fields.map(([label, name]) => [label, briefly(newest[name])])));
  };
}

/** After Ctrl-C, or a signal of the program's own: the last step is saved. */
async function endInterrupted(folder: RunFolder, done: number, isKilled: boolean): Promise<void> {
  if (done > folder.step) await folder.report();
  if (!folder.silent) console.log(`stopped; to continue: ${howToResume(folder)}`);
  if (isKilled) process.exitCode = 130;
}
