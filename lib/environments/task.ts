/** Tasks (`--task`): where problems come from, and what an answer to one is worth, in place of the experiment's own rules. */
import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { mistakeIn, UserError } from '../errors.ts';
import { oneLine, shown } from '../text.ts';
import type { Verdict } from './answers.ts';
import { holdOut, loadProblems, loadSplits, type Problem, type Rules } from './dataset.ts';

/** A problem as a task gives it: question, answer, and what else its rules need to know. */
export type TaskProblem = Pick<Problem, 'question' | 'answer'> & Partial<Problem>;

/** What a module of a task exports as `task`. What it leaves out is as in the experiment. */
export type Task = {
  /** instructions before each question */
  systemPrompt?: string;
  /**
   * @param options.dataset - the file or folder that the user has named, if any
   * @returns problems to train on; and held-out ones, unless some of the first are to be held out
   */
  load: (options: {
    dataset?: string | undefined;
    seed: number;
  }) => { train: TaskProblem[]; test?: TaskProblem[] } | Promise<{ train: TaskProblem[]; test?: TaskProblem[] }>;
  /** what became of the answer: accuracies count the right ones */
  verdict?: (text: string, problem: TaskProblem) => Verdict;
  /** what a completion is worth; without it 1 for a right answer, a little for a wrong one, and 0 for none */
  reward?: (text: string, problem: TaskProblem) => number;
};

type LoadOptions = Omit<Parameters<typeof loadSplits>[1], 'evalDataset'> & { task?: string; evalDataset?: string };

/**
 * The problems of a run: those of its task, with the task's rules; without one, those of its data sets.
 * @param options.task - the name of a folder of tasks/, or a module of the user's own
 * @param bundled - see {@link loadSplits}: also what `dataset` names where the user has named nothing
 * @throws {UserError} if there is no such task, it exports none, or its data cannot be read
 */
export async function loadData(
  options: LoadOptions,
  bundled: { train: string; test: string },
): Promise<{ train: Problem[]; test: Problem[] }> {
  const { task: name, dataset, evalSize, seed } = options;
  if (name === undefined) return loadSplits(loadProblems, options, bundled);
  const task = await importTask(name);
  const loaded = await task.load({ dataset: dataset === bundled.train ? undefined : dataset, seed });
  const withRules = (problem: TaskProblem, i: number): Problem => {
    const { verdict, reward, systemPrompt } = task;
    const rules: Rules = {
      systemPrompt,
      ...(verdict && { verdict: (text: string) => verdict(text, problem) }),
      ...(reward && { reward: (text: string) => reward(text, problem) }),
    };
    return { columns: {}, source: `${name}, problem ${i + 1}`, ...problem, task: rules };
  };
  const all = loaded.train.map(withRules);
  if (loaded.test) return { train: all, test: loaded.test.slice(0, evalSize).map(withRules) };
  return holdOut(all, name, options);
}

/** @throws {UserError} if there is no such module, or it exports no task */
export async function importTask(name: string): Promise<Task> {
  // As seen from this file; and, where all is compiled, from what is compiled of it.
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  const [, folder, file = 'task'] = /^(\w+)(?:\/(\w+))?$/.exec(name) ?? [];
  const own = folder ? new URL(`../../tasks/${folder}/${file}.${extension}`, import.meta.url) : undefined;
  const isOwn = own && existsSync(fileURLToPath(own));
  if (!isOwn && !existsSync(name)) {
    throw new UserError(
      `--task ${name}: there is no such task in tasks/, and no such file: name a module that exports one`,
    );
  }
  const module: { task?: Task } = await import(isOwn ? own.href : pathToFileURL(resolve(name)).href).catch((error) => {
    throw new UserError(`--task ${name} cannot be loaded: ${oneLine(mistakeIn(error) ?? String(error))}`);
  });
  if (typeof module.task?.load === 'function') return module.task;
  throw new UserError(`--task ${name} must export a task with load(), found ${shown(Object.keys(module))}`);
}
