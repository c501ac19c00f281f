/** Finding a run that was started before. */
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { UserError } from '../errors.ts';
import { replacedOf } from '../folders.ts';
import { isObject } from '../json.ts';
import { shown } from '../text.ts';
import { isOrigin, type Origin } from './origin.ts';
import { withTasks } from './saved_options.ts';

/** Where the runs of an experiment are: in `outputDir`, or below `root`, the folder of all runs. */
export type RunPlace = { experiment: string; outputDir?: string; root?: string };

/** A run that was started before. */
export type FoundRun = {
  experiment: string;
  /** what tells it from all other runs; runs of earlier versions have none */
  id?: string;
  folder: string;
  /** the folder to continue from; none if the run was ended before its first checkpoint */
  checkpoint?: string;
  /** the step of that checkpoint, else 0 */
  step: number;
  /** the file that holds {@link FoundRun.options} */
  file: string;
  /** the options that it was started with */
  options: Record<string, unknown>;
  /** what it was started from, and where its folder was then; runs of earlier versions do not say */
  origin?: Origin;
  formerFolder?: string;
};

/**
 * Finds the run that is to be resumed, and changes nothing.
 * @param resume - a run's folder, one of its checkpoints, or `latest`: the run in `outputDir` if that is given, else the
 *   newest one that was given no `outputDir`
 * @throws {UserError} if there is no such run, or it is one of another experiment
 */
export function findRun(resume: string, { experiment, outputDir, root = 'runs' }: RunPlace): FoundRun {
  const named = resume === 'latest' ? (outputDir ?? newestRun(join(root, experiment))) : resume;
  const only = checkpointStep(named);
  const folder = only === undefined ? named : join(named, '..');
  if (outputDir !== undefined && resolve(folder) !== resolve(outputDir)) {
    throw new UserError(`--resume ${resume} continues in ${folder}: leave out --output-dir ${outputDir}`);
  }
  const file = join(folder, 'config.json');
  const config = readJson(file);
  if (typeof config?.experiment !== 'string' || !isObject(config.options)) {
    throw new UserError(`--resume: ${folder} is not the folder of a run: it has no config.json that a run has written`);
  }
  if (config.experiment !== experiment) {
    throw new UserError(`--resume: ${folder} holds a run of ${config.experiment}, not of ${experiment}`);
  }
  const { id, folder: formerFolder, origin } = config;
  const options = withTasks(config.options);
  for (const [key, value] of Object.entries({ id, folder: formerFolder })) {
    if (value === undefined || typeof value === 'string') continue;
    throw new UserError(`${file}: "${key}" must be a text, found ${shown(value)}`);
  }
  if (origin !== undefined && !isOrigin(origin)) {
    throw new UserError(`${file}: "origin" must say what the run was started from, found ${shown(origin)}`);
  }
  const checkpoints = findCheckpoints(folder);
  const step = only ?? checkpointSteps(folder).at(-1);
  const checkpoint = step === undefined ? undefined : checkpoints.get(step);
  if (only !== undefined && !checkpoint) throw new UserError(`--resume: there is no checkpoint ${named}`);
  return { experiment, id, folder, checkpoint, step: step ?? 0, file, options, origin, formerFolder };
}

/**
 * The checkpoints in a run's folder, by step, ascending. One that was about to be replaced when the process was killed is
 * found under the name that it had then ({@link mend} gives it back its own).
 */
export function findCheckpoints(folder: string): Map<number, string> {
  const found = new Map<number, string>();
  for (const name of readdirSync(folder)) {
    const step = checkpointStep(name.replace(/^\.(.*)\.replaced$/, '$1'));
    if (step === undefined) continue;
    const path = join(folder, `checkpoint-${step}`);
    found.set(step, existsSync(path) ? path : replacedOf(path));
  }
  return new Map([...found].sort(([a], [b]) => a - b));
}

/** Their steps alone. */
export const checkpointSteps = (folder: string): number[] => [...findCheckpoints(folder).keys()];

function newestRun(folder: string): string {
  const runs = existsSync(folder)
    ? readdirSync(folder).filter((name) => existsSync(join(folder, name, 'config.json')))
    : [];
  if (runs.length === 0) throw new UserError(`--resume latest: there is no run in ${folder} yet`);
  const started = (name: string) => statSync(join(folder, name, 'config.json')).mtimeMs;
  return join(folder, runs.sort((a, b) => started(a) - started(b))[runs.length - 1]);
}

/** The step in the name of a checkpoint folder, if `path` names one. */
function checkpointStep(path: string): number | undefined {
  const [, digits] = /^checkpoint-(\d+)$/.exec(basename(resolve(path))) ?? [];
  return digits === String(Number(digits)) ? Number(digits) : undefined;
}

/** The value in a JSON file; undefined where there is none, or one that is nested too deeply to be written again. */
export function readJson(file: string) {
  try {
    const value = JSON.parse(readFileSync(file, 'utf8'));
    JSON.stringify(value);
    return value;
  } catch {
    return undefined;
  }
}
