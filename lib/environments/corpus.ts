/** What a search tool looks through, and questions about it, in the forms of several well-known data sets. */

import { UserError } from '../errors.ts';
import { isObject, type JsonObject } from '../json.ts';
import { shown } from '../text.ts';
import { type ColumnNames, foundIn } from './dataset.ts';
import { readJsonLines } from './json_lines.ts';

/** A piece of text under a title. Several may share a title. */
export type Passage = { title: string; text: string };

export type Question = {
  question: string;
  /** Each of them counts as right. At least one. */
  answers: string[];
  /** Titles of the passages that answer the question together, each once; absent where the data does not say. */
  supporting?: string[];
  /** All that stands on the line. */
  columns: JsonObject;
  /** Where it comes from, for messages. */
  source: string;
};

/**
 * Reads passages: JSONL with a "title" and a "text", a text or a list of sentences, a line. Or questions with their
 * passages in "context", as those of HotpotQA and SQuAD; or, if the name ends in .json, one object
 * `{ title: [sentence, …], … }`.
 * @returns passages whose text is on one line, each once
 * @throws {UserError} if the file cannot be read, holds no passage, or is malformed; names file and line
 */
export function loadCorpus(file: string): Passage[] {
  const membersOf = (object: JsonObject) => Object.entries(object).map(([title, text]) => ({ title, text }));
  const items = readJsonLines(file, (object) => ({ passages: passagesIn(object) }), { membersOf });
  const passages = items.flatMap(({ passages }) => passages);
  return [...new Map(passages.map((passage) => [JSON.stringify(passage), passage])).values()];
}

/**
 * Reads questions: JSONL with a "question" and an "answer" (a text or a number) a line, and perhaps a list "supporting" of
 * titles. In place of "answer" there may be several in "answers" or "golden_answers", which may be SQuAD's
 * `{ text: [answer, …], … }`; in place of "supporting", HotpotQA's "supporting_facts".
 * @throws {UserError} if the file cannot be read, holds no question, or is malformed; names file and line
 */
export function loadQuestions(
  file: string,
  { questionColumn = 'question', answerColumn = 'answer' }: ColumnNames = {},
): Question[] {
  return readJsonLines(file, (columns) => {
    const question = columns[questionColumn];
    if (!isText(question))
      throw new Error(`"${questionColumn}" must be a text, ${foundIn(columns, questionColumn, '--question-column')}`);
    const candidates = answerColumn === 'answer' ? ['answers', 'golden_answers', 'answer'] : [answerColumn];
    const name = candidates.find((name) => Object.hasOwn(columns, name)) ?? answerColumn;
    const value = isObject(columns[name]) ? columns[name].text : columns[name];
    const answers = Array.isArray(value) || name.endsWith('answers') ? value : [value];
    if (
      !Array.isArray(answers) ||
      answers.length === 0 ||
      !answers.every((answer) => isText(answer) || typeof answer === 'number')
    ) {
      const problem = foundIn(columns, name, '--answer-column');
      throw new Error(`"answer" must be a text or a number, or "answers" a list of them, ${problem}`);
    }
    const supporting = columns.supporting ?? titlesOf(columns.supporting_facts);
    if (supporting === undefined) return { question, answers: answers.map(String), columns };
    if (!Array.isArray(supporting) || !supporting.every(isText)) {
      throw new Error(
        `"supporting" must be a list of titles, ${found(columns.supporting ?? columns.supporting_facts)}`,
      );
    }
    return { question, answers: answers.map(String), supporting: [...new Set(supporting)], columns };
  });
}

/** Of HotpotQA's supporting facts, as its own files have them, `[[title, sentence], …]`, or the hub, `{ title: […], … }`. */
const titlesOf = (facts: unknown): unknown =>
  Array.isArray(facts) ? facts.map((fact) => fact?.[0]) : isObject(facts) ? facts.title : facts;

/** The passages of one object: itself, or those of a question of SQuAD or HotpotQA, whose own files and hub differ. */
function passagesIn({ title, text, context }: JsonObject): Passage[] {
  if (typeof context === 'string') return [passageOf(title, context)];
  if (Array.isArray(context)) return context.map((pair) => passageOf(pair?.[0], pair?.[1]));
  if (!isObject(context)) return [passageOf(title, text)];
  const { title: titles, sentences } = context;
  if (!Array.isArray(titles) || !Array.isArray(sentences) || titles.length !== sentences.length) {
    throw new Error(`"context" must have as many titles as lists of sentences, ${found(context)}`);
  }
  return titles.map((title, i) => passageOf(title, sentences[i]));
}

function passageOf(title: unknown, text: unknown): Passage {
  if (!isText(title)) throw new Error(`"title" must be a text, ${found(title)}`);
  const sentences = Array.isArray(text) ? text : [text];
  if (!sentences.every((sentence) => typeof sentence === 'string') || !isText(sentences.join(''))) {
    throw new Error(`the text of ${shown(title)} must be a text or a list of sentences, ${found(text)}`);
  }
  // Most of HotpotQA's sentences begin with the space that parts them from the one before, but not all.
  return { title, text: sentences.join(' ').replace(/\s+/g, ' ').trim() };
}

const isText = (value: unknown): value is string => typeof value === 'string' && value.trim() !== '';
const found = (value: unknown) => `found ${value === undefined ? 'nothing' : shown(value)}`;

/**
 * Refuses a corpus that is not that of the questions, where they say what they need.
 * @throws {UserError} if it holds none of the passages that any question needs
 */
export function checkCorpus(
  questions: Question[],
  { passages, corpus }: { passages: Passage[]; corpus: string },
): void {
  const titles = new Set(passages.map(({ title }) => title));
  const needed = questions.flatMap(({ supporting }) => supporting ?? []);
  if (needed.length === 0 || needed.some((title) => titles.has(title))) return;
  const file = questions[0].source.replace(/(:|, item )\d+$/, '');
  throw new UserError(
    `${corpus} holds no passage that the questions of ${file} need, such as "${needed[0]}": name the corpus that belongs to the questions with --corpus, or questions that belong to the corpus with --dataset and --eval-dataset`,
  );
}
