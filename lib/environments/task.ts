/** Tasks (`--task`): where problems come from, and what an answer to one is worth, in place of the experiment's own rules. */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { UserError } from '../errors.ts';
import { shown } from '../text.ts';
import { importModule, saidBy } from '../user_module.ts';
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
  if (options.evalDataset !== undefined) {
    throw new UserError(`--task ${name} says what is held out: leave out --eval-dataset, or the task`);
  }
  const task = await importTask(name);
  const loaded = await loadFrom(task, name, { dataset: dataset === bundled.train ? undefined : dataset, seed });
  const withRules = (problem: TaskProblem, i: number): Problem => {
    const { verdict, reward, systemPrompt } = task;
    const rules: Rules = {
      systemPrompt,
      ...(verdict && { verdict: (text: string) => checkedVerdict(verdict(text, problem), name) }),
      ...(reward && { reward: (text: string) => checkedReward(reward(text, problem), name) }),
    };
    return { ...checkedProblem(problem, `${name}, problem ${i + 1}`), task: rules };
  };
  const all = loaded.train.map(withRules);
  if (loaded.test) return { train: all, test: loaded.test.slice(0, evalSize).map(withRules) };
  return holdOut(all, name, { ...options, evalDataset: null });
}

/** What a task's own load() gives, whatever that may be. */
async function loadFrom(task: Task, name: string, options: Parameters<Task['load']>[0]) {
  try {
    const loaded = await task.load(options);
    const lists = [loaded?.train, loaded?.test ?? []];
    if (lists.every(Array.isArray) && loaded.train.length > 0) return loaded;
    throw new UserError(`must give { train, test? }, lists of problems, found ${shown(loaded ?? null)}`);
  } catch (error) {
    if (error instanceof UserError && !error.message.startsWith('must give')) throw error;
    throw new UserError(`--task ${name}: load() ${saidBy(error)}`);
  }
}

function checkedProblem(problem: TaskProblem, source: string): Problem {
  const { question, answer } = problem ?? {};
  if (typeof question !== 'string' || question.trim() === '') {
    throw new UserError(`${source}: "question" must be a text, found ${shown(question ?? null)}`);
  }
  if (typeof answer === 'string' || typeof answer === 'number') {
    return { columns: {}, source, ...problem, answer: String(answer) };
  }
  throw new UserError(`${source}: "answer" must be a text or a number, found ${shown(answer ?? null)}`);
}

function checkedVerdict(verdict: Verdict, name: string): Verdict {
  if (['right', 'wrong', 'missing'].includes(verdict)) return verdict;
  throw new UserError(`--task ${name}: verdict() must return right, wrong or missing, found ${shown(verdict ?? null)}`);
}

function checkedReward(reward: number, name: string): number {
  if (Number.isFinite(reward)) return reward;
  throw new UserError(`--task ${name}: reward() must return a finite number, found ${String(reward)}`);
}

/** @throws {UserError} if there is no such module, or it exports no task */
export async function importTask(name: string): Promise<Task> {
  // As seen from this file; and in the package from what is compiled of it. (lib/dist, which notebooks import, has none.)
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js';
  const [, folder, file = 'task'] = /^(\w+)(?:\/(\w+))?$/.exec(name) ?? [];
  const own = folder && fileURLToPath(new URL(`../../tasks/${folder}/${file}.${extension}`, import.meta.url));
  const found = [own, name].find((path) => path && existsSync(path));
  if (!found) {
    throw new UserError(
      `--task ${name}: there is no such task in tasks/ (sums, gsm8k, ifeval, countdown), and no such file: name a module that exports one`,
    );
  }
  const module: { task?: Task } = await importModule(found, `--task ${name}`);
  if (typeof module.task?.load === 'function') return module.task;
  throw new UserError(`--task ${name} must export a task with load(), found ${shown(Object.keys(module))}`);
}
