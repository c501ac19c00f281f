/** Data sets: JSON Lines (one JSON object a line), held-out splits, and the order in which training sees them. */
import { readFileSync } from 'node:fs';
import { UserError } from './errors.ts';
import { permutation } from './random.ts';

/**
 * Reads a data set. Empty lines are skipped, and the mark with which some editors on Windows begin a file.
 * @param file - path of a JSONL file
 * @param parse - checks one line's object; throws an Error whose message says what was expected and what was found
 * @returns what `parse` made of each line, with the place it came from (`file:line`, for messages)
 * @throws {UserError} if the file cannot be read or holds no line, or, naming file and line, if a line is malformed
 */
export function readJsonLines<T>(
  file: string,
  parse: (object: Record<string, unknown>) => T,
): (T & { source: string })[] {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new UserError(
      `cannot read the data set ${file} (${(error as NodeJS.ErrnoException).code}): name a JSONL file`,
    );
  }
  const items = text
    .replace(/^\uFEFF/, '')
    .split('\n')
    .flatMap((line, i) => {
      if (line.trim() === '') return [];
      const source = `${file}:${i + 1}`;
      try {
        const value: unknown = JSON.parse(line);
        if (typeof value !== 'object' || value === null || Array.isArray(value))
          throw new Error('expected a JSON object');
        return [{ ...parse(value as Record<string, unknown>), source }];
      } catch (error) {
        const problem = error instanceof SyntaxError ? 'not valid JSON: ' : '';
        throw new UserError(`${source}: ${problem}${(error as Error).message}`);
      }
    });
  if (items.length === 0) throw new UserError(`the data set ${file} is empty: expected one JSON object a line`);
  return items;
}

/** A question and what it should be answered with, and the line that they come from. */
export type Problem = { question: string; answer: string; source: string };

/**
 * Reads problems: JSONL with a "question" and an "answer", a number or a text, a line.
 * @throws {UserError} as {@link readJsonLines}
 */
export function loadProblems(file: string): Problem[] {
  return readJsonLines(file, ({ question, answer }) => {
    const found = (value: unknown) => `found ${JSON.stringify(value) ?? 'nothing'}`;
    if (typeof question !== 'string' || question === '')
      throw new Error(`"question" must be a text, ${found(question)}`);
    if (!['string', 'number'].includes(typeof answer)) {
      throw new Error(`"answer" must be a text or a number, ${found(answer)}`);
    }
    return { question, answer: String(answer) };
  });
}

/**
 * Training and held-out items: from two files, or from one of which some are held out.
 * @param load - reads one file
 * @param options.evalSize - held-out items: the first so many of `evalDataset`, or so many drawn from `dataset`
 * @param bundled - files that belong together: with the one as `dataset`, the other is the `evalDataset` to take
 * @throws {UserError} if `dataset` has too few items to hold any out
 */
export function loadSplits<T>(
  load: (file: string) => T[],
  options: { dataset: string; evalDataset?: string; evalSize: number; seed: number },
  bundled: { train: string; test: string },
): { train: T[]; test: T[] } {
  const { dataset, evalSize, seed } = options;
  const evalDataset = options.evalDataset ?? (dataset === bundled.train ? bundled.test : undefined);
  const items = load(dataset);
  if (evalDataset) return { train: items, test: load(evalDataset).slice(0, evalSize) };
  if (items.length <= evalSize) {
    throw new UserError(
      `${dataset} has ${items.length} items, too few to hold out ${evalSize}: lower --eval-size, or name held-out items with --eval-dataset`,
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
