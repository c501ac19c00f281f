/** What an experiment says of its runs: the defaults of its options, and what each token weighs in its loss. */
import { fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { JsonObject } from '../lib/json.ts';
import type { Answer, Weighable } from './experiment_process.ts';

const REPOSITORY = join(import.meta.dirname, '..');

export type Experiment = {
  /** undefined: there is no such experiment here */
  defaults: Promise<JsonObject | undefined>;
  /** A weight for each token of each completion of a group; undefined if the experiment cannot tell. */
  weigh: (rows: Weighable[], options: JsonObject) => Promise<number[][] | undefined>;
};

const UNKNOWN: Experiment = { defaults: Promise.resolve(undefined), weigh: async () => undefined };

const known = new Map<string, Experiment>();

/** The experiment of a name, whose process is started when it is first asked for, and ends with this one. */
export function experimentOf(name: string): Experiment {
  const script = join(REPOSITORY, name, 'train.ts');
  if (!/^experiment_[a-z_]+$/.test(name) || !existsSync(script)) return UNKNOWN;
  const experiment = known.get(name) ?? startExperiment(script);
  known.set(name, experiment);
  return experiment;
}

function startExperiment(script: string): Experiment {
  const child = fork(join(import.meta.dirname, 'experiment_process.ts'), [script], {
    ...{ cwd: REPOSITORY, execArgv: ['--import', 'tsx'], stdio: ['ignore', 'ignore', 'ignore', 'ipc'] },
  });
  const waiting = new Map<number, (weights: number[][] | undefined) => void>();
  let [asked, isThere] = [0, true];
  /** This process waits for the other one while there is something to be told, and not longer. */
  const rest = () => {
    if (waiting.size > 0) return;
    child.unref();
    child.channel?.unref();
  };
  const defaults = new Promise<JsonObject | undefined>((resolve) => {
    child.on('message', (answer: Answer) => {
      if ('defaults' in answer) resolve(answer.defaults as JsonObject);
      else {
        waiting.get(answer.id)?.(answer.weights);
        waiting.delete(answer.id);
      }
      rest();
    });
    child.on('error', () => {}); // it exits, too
    child.on('exit', () => {
      isThere = false;
      resolve(undefined); // all options are shown then
      for (const answer of waiting.values()) answer(undefined);
    });
  });
  const weigh: Experiment['weigh'] = async (rows, options) => {
    const standard = await defaults;
    if (!isThere) return undefined;
    const id = asked++;
    const weights = new Promise<number[][] | undefined>((resolve) => waiting.set(id, resolve));
    child.ref();
    child.channel?.ref();
    child.send({ id, rows, options: { ...standard, ...options } });
    return weights;
  };
  return { defaults, weigh };
}
