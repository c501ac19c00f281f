/** What a search tool looks through, and questions about it: as JSON Lines, or as HotpotQA's JSON files have them. */
import { readFileSync } from 'node:fs';
import type { JsonObject } from '../model/json.ts';
import { readJsonLines } from '../run/dataset.ts';
import { UserError } from '../run/errors.ts';

/** A piece of text under a title. Several may share a title. */
export type Passage = { title: string; text: string };

export type Question = {
  question: string;
  /** Each of them counts as right. At least one. */
  answers: string[];
  /** Titles of the passages that answer the question together, each once; absent where the data does not say. */
  supporting?: string[];
  /** Where it comes from, for messages. */
  source: string;
};

/**
 * Reads passages: JSONL with a "title" and a "text" a line; or, if the name ends in .json, one object
 * `{ title: [sentence, …], … }`, as HotpotQA has it.
 * @returns passages whose text is on one line
 * @throws {UserError} if the file cannot be read, holds no passage, or is malformed; names file and line
 */
export function loadCorpus(file: string): Passage[] {
  const passages = readItems(file, parsePassage, 'an object { title: [sentence, …], … }', (json) => {
    if (typeof json !== 'object' || json === null || Array.isArray(json)) return [];
    return Object.entries(json).map(([title, text]) => ({ title, text }));
  });
  return passages.map(({ title, text }) => ({ title, text }));
}

/**
 * Reads questions: JSONL with a "question", an "answer" (a text or a number) or a list of "answers", and perhaps a list
 * "supporting" of titles, a line; or, if the name ends in .json, a list of such objects. HotpotQA's "supporting_facts",
 * `[title, sentence][]`, will do for "supporting".
 * @throws {UserError} if the file cannot be read, holds no question, or is malformed; names file and line
 */
export function loadQuestions(file: string): Question[] {
  return readItems(file, parseQuestion, 'a list of questions', (json) => (Array.isArray(json) ? json : []));
}

function parsePassage({ title, text }: JsonObject): Passage {
  if (!isText(title)) throw new Error(`"title" must be a text, ${found(title)}`);
  const sentences = Array.isArray(text) ? text : [text];
  if (!sentences.every((sentence) => typeof sentence === 'string') || !isText(sentences.join(''))) {
    throw new Error(`the text of ${JSON.stringify(title)} must be a text or a list of sentences, ${found(text)}`);
  }
  // Most of HotpotQA's sentences begin with the space that parts them from the one before, but not all.
  return { title, text: sentences.join(' ').replace(/\s+/g, ' ').trim() };
}

function parseQuestion(object: JsonObject): Omit<Question, 'source'> {
  const { question, answer, answers = [answer], supporting_facts: facts } = object;
  if (!isText(question)) throw new Error(`"question" must be a text, ${found(question)}`);
  const isAnswer = (value: unknown) => isText(value) || typeof value === 'number';
  if (!Array.isArray(answers) || answers.length === 0 || !answers.every(isAnswer)) {
    const problem = object.answers === undefined ? found(answer) : found(answers);
    throw new Error(`"answer" must be a text or a number, or "answers" a list of them, ${problem}`);
  }
  const item = { question, answers: answers.map(String) };
  const supporting = object.supporting ?? (Array.isArray(facts) ? facts.map((fact) => fact?.[0]) : facts);
  if (supporting === undefined) return item;
  if (!Array.isArray(supporting) || !supporting.every(isText)) {
    throw new Error(`"supporting" must be a list of titles, ${found(object.supporting ?? facts)}`);
  }
  return { ...item, supporting: [...new Set<string>(supporting)] };
}

const isText = (value: unknown): value is string => typeof value === 'string' && value.trim() !== '';
const found = (value: unknown) => `found ${(JSON.stringify(value) ?? 'nothing').slice(0, 80)}`;

/**
 * Reads JSONL, or, if the name ends in .json, one JSON value.
 * @param parse - as {@link readJsonLines} has it
 * @param expected - what the JSON value must be, for messages
 * @param itemsOf - the objects in the JSON value; none if it is of another kind
 */
function readItems<T>(
  file: string,
  parse: (object: JsonObject) => T,
  expected: string,
  itemsOf: (json: unknown) => JsonObject[],
): (T & { source: string })[] {
  if (!file.endsWith('.json')) return readJsonLines(file, parse);
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== undefined) throw new UserError(`cannot read ${file} (${code}): name a JSONL file or one of HotpotQA`);
    throw new UserError(`${file}: not valid JSON: ${message}; if it is JSON Lines, let its name end in .jsonl`);
  }
  const items = itemsOf(json);
  if (items.length === 0) throw new UserError(`${file} must hold ${expected}, found something else, or nothing`);
  return items.map((item, i) => {
    const source = `${file}, item ${i + 1}`;
    try {
      if (typeof item !== 'object' || item === null) throw new Error(`expected a JSON object, ${found(item)}`);
      return { ...parse(item), source };
    } catch (error) {
      throw new UserError(`${source}: ${(error as Error).message}`);
    }
  });
}
