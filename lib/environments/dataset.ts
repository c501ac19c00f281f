/** Data sets: problems, held-out splits, and the order in which training sees them. */

import { UserError } from '../errors.ts';
import type { JsonObject } from '../json.ts';
import { permutation } from '../random.ts';
import { counted, shown } from '../text.ts';
import type { Verdict } from './answers.ts';
import { readJsonLines } from './json_lines.ts';

/** A question and what it should be answered with; all that stands on their line, for rewards; which line that is; and the rules of its task. */
export type Problem = { question: string; answer: string; columns: JsonObject; source: string; task?: Rules };

/** What a task puts in place of the experiment's own instructions and rules. */
export type Rules = {
  systemPrompt?: string | undefined;
  verdict?: (text: string) => Verdict;
  reward?: (text: string) => number;
};

/** Which columns hold question and answer: `--question-column` and `--answer-column`. */
export type ColumnNames = { questionColumn?: string; answerColumn?: string };

/**
 * Reads problems: JSONL with a "question" and an "answer", a number or a text on one line, a line. Of an answer that ends in
 * "#### 72", as GSM8K's do, only that is taken.
 * @throws {UserError} as {@link readJsonLines}
 */
export function loadProblems(
  file: string,
  { questionColumn = 'question', answerColumn = 'answer' }: ColumnNames = {},
): Problem[] {
  return readJsonLines(file, (columns) => {
    const { [questionColumn]: question, [answerColumn]: answer } = columns;
    if (typeof question !== 'string' || question.trim() === '')
      throw new Error(`"${questionColumn}" must be a text, ${foundIn(columns, questionColumn, '--question-column')}`);
    const found = foundIn(columns, answerColumn, '--answer-column');
    if (typeof answer !== 'string' && typeof answer !== 'number')
      throw new Error(`"${answerColumn}" must be a text or a number, ${found}`);
    const final = finalAnswer(String(answer));
    if (final === '') throw new Error(`"${answerColumn}" must not be empty, also after "####", ${found}`);
    if (/[\r\n]/.test(final)) {
      throw new Error(
        `"${answerColumn}" must be the final answer alone, on one line, ${found}: name a column that is with --answer-column, or end it with a line such as "#### 72", as GSM8K does`,
      );
    }
    return { question, answer: final, columns };
  });
}

/** What follows #### on the last line, where there is one. */
const finalAnswer = (answer: string): string => {
  const text = answer.trim();
  return (/(?:^|\n)####([^\n]*)$/.exec(text)?.[1] ?? text).trim();
};

/** What a column holds, for messages; if there is no such column, which ones there are. */
export function foundIn(columns: JsonObject, name: string, option: string): string {
  if (Object.hasOwn(columns, name)) return `found ${shown(columns[name])}`;
  return `found nothing: name one of the columns ${shown(Object.keys(columns))} with ${option}`;
}

/**
 * Training and held-out items: from two files, or from one of which some are held out.
 * @param load - reads one file
 * @param options.evalSize - held-out items: the first so many of `evalDataset`, or so many drawn from `dataset`
 * @param bundled - files that belong together: with the one as `dataset`, the other is the `evalDataset` to take
 * @throws {UserError} if `dataset` has too few items to hold any out
 */
export function loadSplits<T>(
  load: (file: string, options: ColumnNames) => T[],
  options: { dataset: string; evalDataset?: string; evalSize: number; seed: number } & ColumnNames,
  bundled: { train: string; test: string },
): { train: T[]; test: T[] } {
  const { dataset, evalSize } = options;
  const evalDataset = options.evalDataset ?? (dataset === bundled.train ? bundled.test : undefined);
  const items = load(dataset, options);
  if (evalDataset) {
    const held = load(evalDataset, options);
    if (held.length < evalSize)
      console.log(`--eval-size ${evalSize}: ${evalDataset} has ${held.length}, all are asked`);
    return { train: items, test: held.slice(0, evalSize) };
  }
  return holdOut(items, dataset, options);
}

/**
 * Holds some items out, drawn at random.
 * @param name - where they are from
 * @param options.evalDataset - null where none can be named
 * @throws {UserError} if there are too few
 */
export function holdOut<T>(
  items: T[],
  name: string,
  { evalSize, seed, evalDataset }: { evalSize: number; seed: number; evalDataset?: string | null | undefined },
): { train: T[]; test: T[] } {
  if (items.length <= evalSize) {
    throw new UserError(
      `${name} has ${counted(items.length, 'item')}, too few to hold out ${evalSize}: lower --eval-size${evalDataset === null ? '' : ', or name held-out items with --eval-dataset'}`,
    );
  }
  const shuffled = permutation(items.length, seed).map((i) => items[i]);
  return { train: shuffled.slice(evalSize), test: shuffled.slice(0, evalSize) };
}

/**
 * The items of one step: each epoch in a new order. A function of seed and step alone, so a resumed run goes on where
 * it was.
 * @param step - 1 for the first
 */
export function itemsOfStep<T>(
  items: T[],
  step: number,
  { seed, batchSize }: { seed: number; batchSize: number },
): T[] {
  const orders = new Map<number, number[]>();
  return Array.from({ length: batchSize }, (_, i) => {
    const position = (step - 1) * batchSize + i;
    const epoch = Math.floor(position / items.length);
    const order = orders.get(epoch) ?? permutation(items.length, seed, epoch);
    orders.set(epoch, order);
    return items[order[position % items.length]];
  });
}

/**
 * Refuses prompts that the model cannot read, or that leave no room for a completion, before any time is spent.
 * @param items - with their prompt's token ids, and where each came from
 * @throws {UserError} naming file and line of the first
 */
export function checkPrompts(
  items: { prompt: number[]; source: string }[],
  { maxPositionEmbeddings: context, vocabSize }: { maxPositionEmbeddings: number; vocabSize: number },
  { maxNewTokens }: { maxNewTokens: number },
): void {
  for (const { prompt, source } of items) {
    const unknown = prompt.find((id) => id >= vocabSize);
    if (unknown !== undefined) {
      throw new UserError(
        `${source}: the tokenizer gives token ${unknown}, but the model knows ${vocabSize} tokens only: tokenizer.json and config.json are of different models`,
      );
    }
    if (prompt.length + maxNewTokens <= context) continue;
    throw new UserError(
      `${source}: the prompt has ${prompt.length} tokens, which with --max-new-tokens ${maxNewTokens} exceeds the model's context of ${context}: shorten the question or lower --max-new-tokens`,
    );
  }
}
