/** A run's folder, read while it may still be written: nothing in it is ever changed. */
import { existsSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { UserError } from '../lib/errors.ts';
import { isObject, type JsonObject } from '../lib/json.ts';
import { readJson } from '../lib/run/find_run.ts';
import { writerOf } from '../lib/run/lock.ts';
import type { LogEntry } from '../lib/run/metrics.ts';
import { howToResume, NOTICES } from '../lib/run/run_folder.ts';
import { asText, kebab, NOT_TAKEN_OVER } from '../lib/run/saved_options.ts';
import { mean } from '../lib/statistics.ts';
import { type Experiment, experimentOf } from './experiment.ts';
import type { Weighable } from './experiment_process.ts';
import { followLines, readPart } from './follow.ts';
import type { RunState, ToldAnswer, ToldGroup, ToldRow, ToldRun, ToldStep } from './told.ts';

export type WatchedRun = {
  folder: string;
  experiment: string;
  options: JsonObject;
  /** when it is known which of the options are not the defaults */
  described: Promise<void>;
  /** one entry a step */
  entries: () => LogEntry[];
  /** Reads what is new, and says whether anything is. */
  refresh: () => Promise<boolean>;
  told: () => ToldRun;
  /** What was sampled in the step at place `at`; `weighed`: with what each token weighs in the loss. */
  stepAt: (at: number, how?: { weighed: boolean }) => Promise<ToldStep | undefined>;
  /** The question of the step at place `at`, and that step. */
  questionAt: (at: number) => Asked | undefined;
  /** The place of the step that has this question; of several, of the one that is nearest to `asked.step`. */
  placeOf: (asked: Asked) => number | undefined;
};
type Asked = { question: string; step: number };

/** Where in completions.jsonl the lines of a step are, and the question of the first. */
type Place = Asked & { begin: number; end: number };

/**
 * Begins to watch the run in a folder.
 * @throws {UserError} if there is none
 */
export function watchRun(folder: string): WatchedRun {
  const config = readConfig(folder);
  const { experiment, options } = config;
  const { defaults: found, weigh } = experimentOf(experiment);
  let defaults: JsonObject | undefined;
  let isDescribed = false; // whether the defaults, if there are any, have been told
  const described = found.then((all) => {
    defaults = all;
  });
  const steps = new Map<number, LogEntry>();
  const damaged = new Map<string, number>();
  let [notices, answers, places]: [LogEntry[], LogEntry[], Place[]] = [[], [], []];
  let [sorted, state]: [LogEntry[], RunState] = [[], 'stopped'];

  const follow = (name: string, onEntry: (entry: LogEntry) => void, restart: () => void) =>
    followLines(
      join(folder, name),
      (line) => {
        const entry = entryIn(line.toString('utf8'));
        if (entry) onEntry(entry);
        else damaged.set(name, (damaged.get(name) ?? 0) + 1);
      },
      () => {
        damaged.delete(name);
        restart();
      },
    );
  const completions = join(folder, 'completions.jsonl');
  const logs = [
    follow(
      'metrics.jsonl',
      (entry) => steps.set(entry.step, { ...steps.get(entry.step), ...entry }),
      () => steps.clear(),
    ),
    follow(
      NOTICES,
      (entry) => notices.push(entry),
      () => {
        notices = [];
      },
    ),
    follow(
      'answers.jsonl',
      (entry) => answers.push(entry),
      () => {
        answers = [];
      },
    ),
    followLines(
      completions,
      (line, begin) => {
        const [step, end] = [stepOf(line), begin + line.length + 1];
        const last = places.at(-1);
        if (step !== undefined && last?.step === step) last.end = end;
        else if (step !== undefined) places.push({ step, begin, end, question: questionOf(line) });
        else damaged.set(completions, (damaged.get(completions) ?? 0) + 1);
      },
      () => {
        damaged.delete(completions);
        places = [];
      },
    ),
  ];

  const stateNow = (): RunState => {
    const writer = existsSync(folder) ? writerOf(folder) : 'none';
    if (writer === 'running') return 'running';
    if ((sorted.at(-1)?.step ?? 0) >= Number(options.maxSteps) && existsSync(join(folder, 'final_model')))
      return 'finished';
    return writer === 'killed' ? 'killed' : 'stopped';
  };

  return {
    folder,
    experiment,
    options,
    described,
    entries: () => sorted,
    refresh: async () => {
      let isNew = false;
      for (const read of logs) isNew = (await read()) || isNew; // in the order in which a run writes them, nearly
      if (isNew) sorted = [...steps.values()].sort((a, b) => a.step - b.step);
      const [before, wasDescribed] = [state, isDescribed];
      state = stateNow();
      isDescribed = defaults !== undefined;
      return isNew || before !== state || wasDescribed !== isDescribed;
    },
    told: () => {
      const last = sorted.at(-1)?.step ?? 0;
      const maxSteps = Number(options.maxSteps) || last;
      const seconds = mean(sorted.slice(-20).flatMap(({ step_time }) => (isNumber(step_time) ? [step_time] : [])));
      const unread = [...damaged].map(([name, count]) => ({
        step: 0,
        text: `${basename(name)} has lines that cannot be read, and are left out: ${count}`,
      }));
      const told = notices.map(({ step, text }) => ({ step, text: String(text) }));
      return {
        name: basename(resolve(folder)),
        experiment,
        model: String(options.modelName ?? 'not said'),
        state,
        step: last,
        maxSteps,
        ...(state === 'running' && seconds > 0 ? { left: seconds * Math.max(0, maxSteps - last) } : {}),
        options: describeOptions(options, defaults),
        newest: newestOf(sorted),
        notices: [...unread, ...told],
        answers: answersOf(answers, namesOf(sorted)),
        groups: places.length,
        allGroups: places.length,
        ...(state === 'stopped' || state === 'killed' ? { resume: howToResume({ experiment, folder }) } : {}),
      };
    },
    stepAt: async (at, { weighed } = { weighed: false }) => {
      const place = places[at];
      if (!place) return undefined;
      const text = await readPart(completions, place.begin, place.end);
      const entries = text.split('\n').flatMap((line) => entryIn(line) ?? []);
      const groups = groupsOf(entries, namesOf(sorted));
      if (weighed) for (const { rows } of groups) await addWeights(rows, (known) => weigh(known, options));
      return { at, step: place.step, groups };
    },
    questionAt: (at) => places[at],
    placeOf: ({ question, step }) => {
      let best: number | undefined;
      for (const [at, place] of places.entries()) {
        if (place.question !== question) continue;
        if (best === undefined || Math.abs(place.step - step) < Math.abs(places[best].step - step)) best = at;
      }
      return best;
    },
  };
}

function readConfig(folder: string): { experiment: string; options: JsonObject } {
  const config = readJson(join(folder, 'config.json'));
  if (isObject(config) && typeof config.experiment === 'string' && isObject(config.options)) {
    return { experiment: config.experiment, options: config.options };
  }
  const found = statSync(folder, { throwIfNoEntry: false });
  const why = found?.isDirectory() ? 'it has no config.json that a run has written' : 'there is no such folder';
  throw new UserError(`${folder} is not the folder of a run: ${why}`);
}

/** A line of a log; undefined if it is none. */
function entryIn(text: string): LogEntry | undefined {
  try {
    const entry = JSON.parse(text);
    return isObject(entry) && typeof entry.step === 'number' ? (entry as LogEntry) : undefined;
  } catch {
    return undefined;
  }
}

/** The step of a line, which a run writes first: to parse all lines of a long run would take seconds. */
function stepOf(line: Buffer): number | undefined {
  const [, digits] = /^\{"step":(\d+)[,}]/.exec(line.toString('latin1', 0, 24)) ?? [];
  return digits === undefined ? entryIn(line.toString('utf8'))?.step : Number(digits);
}

const questionOf = (line: Buffer): string => String(entryIn(line.toString('utf8'))?.question ?? '');

const isNumber = (value: unknown): value is number => Number.isFinite(value);
const numberOr = <T>(value: unknown, otherwise: T): number | T => (isNumber(value) ? value : otherwise);
const textOf = (value: unknown): string =>
  typeof value === 'string' ? value : value === undefined ? '' : JSON.stringify(value);

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Options that say nothing of what a run does. */
const ASIDE = [...NOT_TAKEN_OVER, 'templateDate'];

function describeOptions(options: JsonObject, defaults: JsonObject | undefined): ToldRun['options'] {
  const list = Object.entries(options).filter(([key, value]) => {
    if (ASIDE.includes(key) || value === null) return false;
    return defaults === undefined || !isDeepStrictEqual(value, defaults[key]);
  });
  const words = list.map(([key, value]): [string, string] => [`--${kebab(key)}`, asText(value)]);
  return { differing: defaults !== undefined, list: words };
}

// ─── Metrics ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const NEWEST = {
  reward: 'reward',
  'held-out accuracy': 'eval/accuracy',
  'completion length': 'completions/mean_length',
  entropy: 'entropy',
  KL: 'kl',
  'tokens/s': 'tokens_per_second',
};

/** The newest value of each that is shown, in their order. */
const newestOf = (entries: LogEntry[]): [string, number][] =>
  Object.entries(NEWEST).flatMap(([name, metric]): [string, number][] => {
    const value = entries.findLast((entry) => isNumber(entry[metric]))?.[metric];
    return value === undefined ? [] : [[name, value as number]];
  });

/** Names of the parts of the reward, in the order in which samples have them. */
const namesOf = (entries: LogEntry[]): string[] =>
  Object.keys(entries.at(-1) ?? {}).flatMap((name) => /^rewards\/(.+)\/mean$/.exec(name)?.[1] ?? []);

// ─── Samples ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function rowOf(sample: JsonObject, names: string[]): ToldRow {
  const { rewards, pieces, log_probs: logProbs } = sample;
  const parts = Array.isArray(rewards)
    ? rewards.map((value, i) => [names[i] ?? `part ${i + 1}`, value])
    : Object.entries(isObject(rewards) ? rewards : {});
  const hasTokens = Array.isArray(pieces) && Array.isArray(logProbs) && pieces.length === logProbs.length;
  return {
    completion: textOf(sample.completion),
    reward: numberOr(sample.reward, null),
    rewards: parts.filter((part): part is [string, number] => isNumber(part[1])),
    ...(isNumber(sample.advantage) ? { advantage: sample.advantage } : {}),
    ...(isNumber(sample.tokens) ? { tokens: sample.tokens } : {}),
    ...(hasTokens ? { pieces: pieces.map(textOf), logProbs: logProbs.map((value) => numberOr(value, null)) } : {}),
  };
}

/** Tells of each token of a group what it weighs in the loss, where all that this depends on is known. */
async function addWeights(
  rows: ToldRow[],
  weigh: (rows: Weighable[]) => ReturnType<Experiment['weigh']>,
): Promise<void> {
  const known = rows.flatMap(({ logProbs, advantage }) =>
    logProbs?.length && advantage !== undefined ? [{ logProbs, advantage }] : [],
  );
  const weights = known.length > 0 && known.length === rows.length ? await weigh(known) : undefined;
  weights?.forEach((ofRow, i) => {
    rows[i].weights = ofRow;
  });
}

const answerOf = ({ answer }: JsonObject) => (answer === undefined ? {} : { answer: textOf(answer) });

/** Samples that follow each other and have the same question are a group. */
function groupsOf(entries: JsonObject[], names: string[]): ToldGroup[] {
  const groups: ToldGroup[] = [];
  for (const entry of entries) {
    const question = textOf(entry.question);
    if (groups.at(-1)?.question !== question) groups.push({ question, ...answerOf(entry), rows: [] });
    groups.at(-1)!.rows.push(rowOf(entry, names));
  }
  return groups;
}

/** What was answered before the first step, and at the last. */
function answersOf(entries: LogEntry[], names: string[]): ToldAnswer[] {
  const asked = entries.map(({ step, answers }) => ({
    step,
    answers: Array.isArray(answers) ? answers.filter(isObject) : [],
  }));
  const before = asked.find(({ step }) => step === 0)?.answers ?? [];
  const after = asked.findLast(({ step }) => step > 0)?.answers ?? [];
  const told = new Map<string, ToldAnswer>();
  for (const [when, answers] of [['before', before] as const, ['after', after] as const]) {
    for (const sample of answers) {
      const question = textOf(sample.question);
      told.set(question, { ...told.get(question), question, ...answerOf(sample), [when]: rowOf(sample, names) });
    }
  }
  return [...told.values()];
}
