import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { type Communicator, fromRankZero } from '../distributed/communicator.ts';
import { mistakeIn, UserError } from '../errors.ts';
import { mend, removeFolder, sync, writeFileAtomically, writeFolderAtomically } from '../folders.ts';
import { quoted } from '../text.ts';
import { curves } from './curves.ts';
import { checkpointSteps, type FoundRun, findRun, type RunPlace, readJson } from './find_run.ts';
import { isLock, lockFolder } from './lock.ts';
import { appendEntries, dropEntriesAfter, type LogEntry, readEntries, readMetrics, toCsv } from './metrics.ts';
import type { Origin } from './origin.ts';
import { asConfigFile } from './saved_options.ts';

/** The folder of a run that is under way. */
export type RunFolder = {
  experiment: string;
  /** What tells it from all other runs; runs of earlier versions have none. */
  id?: string;
  folder: string;
  checkpoint?: string;
  step: number;
  /** Whether another process writes this run: nothing is written, shown or said here. */
  silent: boolean;
  /** Adds a line to metrics.jsonl. What belongs to step n is logged before the checkpoint of step n is saved. */
  log: (metrics: LogEntry) => void;
  /** What was logged so far, as one entry a step. */
  history: () => LogEntry[];
  /** Adds lines to completions.jsonl, under the same rule. */
  sample: (entries: LogEntry[]) => void;
  /** Adds a line to answers.jsonl, under the same rule. */
  answer: (entry: LogEntry) => void;
  /** The lines of answers.jsonl. */
  answers: () => LogEntry[];
  /** Adds a line to notices.jsonl, under the same rule. */
  notice: (entry: LogEntry) => void;
  /** The lines of notices.jsonl. */
  notices: () => LogEntry[];
  /** Saves checkpoint-<step> with the files that `write` puts into `dir`, then removes all but the newest `limit`. */
  saveCheckpoint: (step: number, write: (dir: string) => Promise<void>, options?: { limit?: number }) => Promise<void>;
  /** Saves final_model, in place of an older one. Returns its path. */
  saveFinalModel: (write: (dir: string) => Promise<void>) => Promise<string>;
  /** Writes metrics.csv and curves.svg, as a checkpoint does once a minute: to be called at the end. */
  report: () => Promise<void>;
};

/** The file of what a run has noticed: a line each, `step`, `rule` and `text`. */
export const NOTICES = 'notices.jsonl';

/** Milliseconds until a checkpoint comes with new curves: to draw them may take longer than a step. */
const REPORT_EVERY = 60_000;

/**
 * Opens the folder of a run: a new one, `<root>/<experiment>/<time>` or `outputDir`; or that of the run to resume, from
 * which everything later than the checkpoint is removed, so that it ends up as if it had never been interrupted.
 * @throws {UserError} if `outputDir` holds something already or cannot be written, or as {@link findRun}
 */
export function openRun({
  resume,
  options,
  origin,
  ...place
}: RunPlace & { resume?: string; options: Record<string, unknown>; origin?: Origin }): RunFolder {
  const found = resume === undefined ? undefined : claimRun(resume, place);
  const { folder, checkpoint, step } = found ?? { folder: newFolder(place), checkpoint: undefined, step: 0 };
  const id = checkpoint === undefined ? randomUUID() : found?.id;
  const metrics = join(folder, 'metrics.jsonl');
  const completions = join(folder, 'completions.jsonl');
  const answers = join(folder, 'answers.jsonl');
  const notices = join(folder, NOTICES);
  const stillOurs = lockFolder(folder);

  /** What to say of a write that failed: that the folder has gone, or else how to go on. */
  const ending = (error: unknown): unknown => {
    stillOurs();
    const mistake = mistakeIn(error);
    if (mistake === undefined) return error;
    const last = checkpointSteps(folder).at(-1);
    const advice =
      last === undefined
        ? 'there is no checkpoint to go on from'
        : `--resume ${join(folder, `checkpoint-${last}`)} goes on from the last checkpoint`;
    return new UserError(`${mistake}; ${advice}`);
  };
  const append = (file: string, entries: LogEntry[]) => {
    stillOurs();
    try {
      appendEntries(file, entries, { create: !begun.has(file) });
    } catch (error) {
      throw ending(error);
    }
    begun.add(file);
  };
  const write = async (work: () => Promise<void>) => {
    stillOurs();
    await work().catch((error) => {
      throw ending(error);
    });
    stillOurs();
  };
  const save = async (name: string, fill: (dir: string) => Promise<void>) => {
    try {
      await writeFolderAtomically(join(folder, name), async (dir) => {
        await fill(dir);
        stillOurs();
      });
    } catch (error) {
      const mistake = mistakeIn(error);
      throw mistake === undefined ? error : new UserError(`${name} is not saved: ${mistake}`);
    }
  };
  let reported = performance.now();
  const report = async () => {
    const entries = readMetrics(metrics);
    writeFileAtomically(join(folder, 'metrics.csv'), toCsv(entries));
    writeFileAtomically(join(folder, 'curves.svg'), await curves(entries));
    reported = performance.now();
  };

  try {
    if (found) {
      // Newest first, and before the logs: wherever this is cut short, the logs reach as far as the newest checkpoint.
      for (const later of checkpointSteps(folder).reverse()) {
        if (later > step) removeFolder(join(folder, `checkpoint-${later}`));
      }
      // Without a checkpoint the run starts again, and logs what it does before step 1 again.
      for (const file of [metrics, completions, answers, notices])
        dropEntriesAfter(file, checkpoint === undefined ? -1 : step);
    }
    const { experiment } = place;
    const config = { experiment, id, folder: resolve(folder), node: process.versions.node, origin, options };
    // First: what config.json makes a run has all of it.
    if (experiment.startsWith('experiment_')) {
      writeFileAtomically(join(folder, 'config.yaml'), asConfigFile(options));
    }
    writeFileAtomically(join(folder, 'config.json'), `${JSON.stringify(config, null, 2)}\n`);
  } catch (error) {
    throw cannotWrite(folder, error);
  }

  // A log that is there is added to, never made anew: what was in it would be missing.
  const begun = new Set([metrics, completions, answers, notices].filter((file) => existsSync(file)));
  return {
    experiment: place.experiment,
    id,
    folder,
    checkpoint,
    step,
    silent: false,
    log: (entry) => append(metrics, [entry]),
    history: () => readMetrics(metrics),
    sample: (entries) => append(completions, entries),
    answer: (entry) => append(answers, [entry]),
    answers: () => readMetrics(answers),
    notice: (entry) => append(notices, [entry]),
    notices: () => readEntries(notices),
    saveCheckpoint: (at, fill, { limit = Number.POSITIVE_INFINITY } = {}) =>
      write(async () => {
        for (const file of begun) sync(file);
        await save(`checkpoint-${at}`, fill);
        const others = checkpointSteps(folder).filter((other) => other !== at);
        for (const old of others.slice(0, Math.max(0, others.length + 1 - Math.max(1, limit)))) {
          removeFolder(join(folder, `checkpoint-${old}`));
        }
        if (performance.now() - reported > REPORT_EVERY) await report();
      }),
    saveFinalModel: async (fill) => {
      await write(() => save('final_model', fill));
      return join(folder, 'final_model');
    },
    report: () => write(report),
  };
}

/** The folder of rank 0's run; every other rank's is at the same step, and writes nothing. */
export async function shareRun(communicator: Communicator, open: () => RunFolder): Promise<RunFolder> {
  let opened: RunFolder | undefined;
  const place = await fromRankZero(communicator, () => {
    opened = open();
    const { experiment, folder, checkpoint, step } = opened;
    return { experiment, folder, checkpoint, step };
  });
  return opened ?? followRun(place);
}

/** A run that another process has opened and writes. */
export const followRun = (place: Pick<RunFolder, 'experiment' | 'folder' | 'checkpoint' | 'step'>): RunFolder => ({
  ...place,
  silent: true,
  log: () => {},
  history: () => [],
  sample: () => {},
  answer: () => {},
  answers: () => [],
  notice: () => {},
  notices: () => [],
  saveCheckpoint: async () => {},
  saveFinalModel: async () => '',
  report: async () => {},
});

/**
 * Finds the run that is to be resumed, reserves it for this process ({@link lockFolder}), and puts its folder in order.
 * @throws {UserError} if another process writes it, or as {@link findRun}
 */
export function claimRun(resume: string, place: RunPlace): FoundRun {
  const { folder } = findRun(resume, place);
  try {
    lockFolder(folder);
    mend(folder);
  } catch (error) {
    throw cannotWrite(folder, error);
  }
  return findRun(resume, place); // a checkpoint may have come back, or have been written meanwhile
}

/**
 * Makes the folder of a new run, and reserves it for this process.
 * @throws {UserError} if `outputDir` holds something already, cannot be written, or is taken by another process
 */
export function newFolder({ experiment, outputDir, root = 'runs' }: RunPlace): string {
  const folder = outputDir ?? join(root, experiment, timestamp(new Date()));
  try {
    if (outputDir === undefined) return makeUnique(folder);
    if (existsSync(folder) && !statSync(folder).isDirectory()) {
      throw new UserError(`--output-dir ${folder} is a file: name a new folder`);
    }
    makeFolder(folder);
    refuseUsed(folder);
    lockFolder(folder);
    refuseUsed(folder); // by a run that began and ended just now
    return folder;
  } catch (error) {
    throw cannotWrite(folder, error);
  }
}

function refuseUsed(folder: string): void {
  // These alone are left by a run that ended as it began: there is nothing yet to resume.
  const begun = ['.config.json.partial', 'config.json', '.config.yaml.partial', 'config.yaml', NOTICES];
  const names = readdirSync(folder).filter((name) => !begun.includes(name) && !isLock(name));
  const config = readJson(join(folder, 'config.json'));
  if (names.length === 0 && (config === undefined || config?.experiment !== undefined)) return;
  const isRun = existsSync(join(folder, 'metrics.jsonl')) || readJson(join(folder, 'config.json'))?.experiment;
  const holds = isRun ? 'another run' : 'other files';
  throw new UserError(`--output-dir ${folder} holds ${holds}: name a new folder, or continue a run with --resume`);
}

/** Makes a folder and those above it. Node's own `recursive` never returns where a parent takes no folders, as /proc. */
function makeFolder(path: string): void {
  if (existsSync(path)) return;
  makeFolder(dirname(path));
  try {
    mkdirSync(path);
  } catch (error) {
    // Another run may have made it just now.
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  }
}

/** Makes `folder`, or `folder-2` and so on, where another run was started in the same second. */
function makeUnique(folder: string): string {
  makeFolder(dirname(folder));
  for (let i = 1; ; i++) {
    const path = i === 1 ? folder : `${folder}-${i}`;
    try {
      mkdirSync(path);
      return path;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
  }
}

/** Local time, as 2026-01-31_14-05-09. */
export function timestamp(date: Date): string {
  return date.toLocaleString('sv-SE').replace(' ', '_').replaceAll(':', '-');
}

function cannotWrite(folder: string, error: unknown): unknown {
  const { code } = error as NodeJS.ErrnoException;
  if (error instanceof UserError || code === undefined) return error;
  return new UserError(`cannot write to ${folder} (${code}): name another folder with --output-dir`);
}

/** The command that continues a run; or, where it is no experiment's, but a script's of one's own, the call. */
export const howToResume = ({ experiment, folder }: Pick<RunFolder, 'experiment' | 'folder'>): string =>
  experiment.startsWith('experiment_')
    ? `node --import tsx ${experiment}/train.ts --resume ${quoted(folder)}`
    : `train({ resumeFromCheckpoint: ${JSON.stringify(folder)} }), or the same command with --output-dir ${quoted(folder)} --resume`;
