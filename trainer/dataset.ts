/** Data sets of the trainer: prompts, and whatever else the rewards need. */
import { isConversation } from '../lib/checkpoint/chat_template.ts';
import { readJsonLines } from '../lib/environments/json_lines.ts';
import { UserError } from '../lib/errors.ts';
import { isObject, type JsonObject } from '../lib/json.ts';
import { shown } from '../lib/text.ts';
import type { Prompt } from './rewards.ts';

/** A line of a data set: the prompt, and columns for the rewards. */
export type Row = { prompt: Prompt; [column: string]: unknown };

/** A list, something that gives one line after the other, or the name of a JSONL file. A line may be a prompt alone. */
export type Dataset = AsyncIterable<Row | string> | Iterable<Row | string> | string;

/** A prompt, the columns beside it, and where they come from. */
export type Example = { prompt: Prompt; columns: JsonObject; source: string };

/**
 * Reads a data set to its end.
 * @param name - what messages call it
 * @throws {UserError} naming the line, if there is none, or one has no prompt
 */
export async function readDataset(dataset: Dataset, name: string): Promise<Example[]> {
  if (typeof dataset === 'string') return readJsonLines(dataset, (line) => exampleOf(line));
  if (dataset === null || typeof dataset !== 'object') {
    throw new UserError(
      `${name} must be a list of { prompt, … }, an iterable, or a JSONL file, found ${shown(dataset)}`,
    );
  }
  const examples: Example[] = [];
  for await (const row of dataset) {
    const source = `${name}[${examples.length}]`;
    try {
      examples.push({ ...exampleOf(row), source });
    } catch (error) {
      throw new UserError(`${source}: ${(error as Error).message}`);
    }
  }
  if (examples.length === 0) throw new UserError(`${name} is empty: expected at least one { prompt, … }`);
  return examples;
}

/** What rewards are given besides the columns of a data set. */
const RESERVED = ['prompts', 'completions', 'completionIds', 'calls', 'environments'];

/** Checks a line. Its message says what was expected, and what was found. */
function exampleOf(row: unknown): Omit<Example, 'source'> {
  if (typeof row === 'string') return exampleOf({ prompt: row });
  if (!isObject(row)) throw new Error(`expected an object with a "prompt", found ${shown(row)}`);
  const { prompt, ...columns } = row;
  const taken = RESERVED.find((name) => Object.hasOwn(columns, name));
  if (taken) throw new Error(`a column cannot be called "${taken}", under which rewards find something else`);
  if (typeof prompt === 'string' && prompt !== '') return { prompt, columns };
  if (isConversation(prompt)) return { prompt, columns };
  throw new Error(`"prompt" must be a text or a list of { role, content }, found ${shown(prompt ?? null)}`);
}
