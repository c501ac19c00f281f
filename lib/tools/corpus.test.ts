import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { UserError } from '../run/errors.ts';
import { loadCorpus, loadQuestions } from './corpus.ts';

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'search-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function write(name: string, text: string): string {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}

/** The one-line message of the UserError that is thrown. */
function mistake(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    expect((error as Error).message).not.toContain('\n');
    return (error as Error).message;
  }
  throw new Error('nothing was thrown');
}

describe('loadCorpus', () => {
  test('reads JSON Lines', () => {
    const file = write(
      'a.jsonl',
      '{"title": "A", "text": "An\\n a.", "id": 1}\n\n{"title": "B", "text": ["One.", "Two."]}\n',
    );
    expect(loadCorpus(file)).toEqual([
      { title: 'A', text: 'An a.' },
      { title: 'B', text: 'One. Two.' },
    ]);
  });

  test("reads HotpotQA's corpus", () => {
    const file = write('a.json', '{"A": ["An a.", " Of b.", "Of c."], "B": ["A b."]}');
    expect(loadCorpus(file)).toEqual([
      { title: 'A', text: 'An a. Of b. Of c.' },
      { title: 'B', text: 'A b.' },
    ]);
  });

  test.each([
    ['empty.jsonl', ' \n', /is empty/],
    ['line.jsonl', '{"title": "A", "text": "a"}\n{"title": "B"', /line.jsonl:2: not valid JSON/],
    ['title.jsonl', '{"text": "a"}', /title.jsonl:1: "title" must be a text, found nothing/],
    ['text.jsonl', '{"title": "A", "text": 1}', /text.jsonl:1: the text of "A" must be a text or .*, found 1/],
    ['blank.jsonl', '{"title": "A", "text": " "}', /blank.jsonl:1: the text of "A" must be a text or .*, found " "/],
    ['empty.json', '{}', /empty.json must hold an object \{ title: .*found/],
    ['list.json', '[{"title": "A", "text": "a"}]', /list.json must hold an object/],
    ['lines.json', '{"title": "A", "text": "a"}\n{"title": "B", "text": "b"}', /not valid JSON: .*JSON Lines.*\.jsonl/],
    ['number.json', '{"A": ["a"], "B": [1]}', /number.json, item 2: the text of "B" must be a text or .*, found \[1\]/],
  ])('%s is refused', (name, text, message) => {
    const file = write(name, text);
    expect(mistake(() => loadCorpus(file))).toMatch(message);
  });

  test.each(['no.jsonl', 'no.json'])('%s is missing', (name) => {
    expect(mistake(() => loadCorpus(join(folder, name)))).toMatch(new RegExp(`cannot read .*${name} \\(ENOENT\\)`));
  });
});

describe('loadQuestions', () => {
  test('reads JSON Lines', () => {
    const lines = [
      '{"question": "Who?", "answer": "Ada", "supporting": ["A", "B", "A"]}',
      '{"question": "How many?", "answer": 3}',
      '{"question": "Where?", "answers": ["here", 4]}',
    ];
    const file = write('questions.jsonl', lines.join('\n'));
    expect(loadQuestions(file)).toEqual([
      { question: 'Who?', answers: ['Ada'], supporting: ['A', 'B'], source: `${file}:1` },
      { question: 'How many?', answers: ['3'], source: `${file}:2` },
      { question: 'Where?', answers: ['here', '4'], source: `${file}:3` },
    ]);
  });

  test("reads HotpotQA's questions", () => {
    const facts = [
      ['A', 0],
      ['B', 2],
      ['A', 1],
    ];
    const file = write(
      'questions.json',
      JSON.stringify([{ question: 'Who?', answer: 'Ada', supporting_facts: facts }]),
    );
    expect(loadQuestions(file)).toEqual([
      { question: 'Who?', answers: ['Ada'], supporting: ['A', 'B'], source: `${file}, item 1` },
    ]);
  });

  test.each([
    ['q1.jsonl', '{"answer": "a"}', /q1.jsonl:1: "question" must be a text, found nothing/],
    ['q2.jsonl', '{"question": "Who?"}', /q2.jsonl:1: "answer" must be .* or "answers" .*, found nothing/],
    ['q3.jsonl', '{"question": "Who?", "answer": true}', /"answer" must be .*, found true/],
    ['q4.jsonl', '{"question": "Who?", "answers": []}', /"answer" must be .*, found \[\]/],
    ['q5.jsonl', '{"question": "Who?", "answers": "Ada"}', /"answer" must be .*, found "Ada"/],
    ['q6.jsonl', '{"question": "Who?", "answer": "a", "supporting": "A"}', /"supporting" must be a list .*, found "A"/],
    [
      'q1.json',
      '[{"question": "Who?", "answer": "a", "supporting_facts": [0]}]',
      /item 1: "supporting" .*, found \[0\]/,
    ],
    ['q2.json', '{"question": "Who?", "answer": "a"}', /q2.json must hold a list of questions/],
    ['q3.json', '["Who?"]', /q3.json, item 1: expected a JSON object, found "Who\?"/],
  ])('%s is refused', (name, text, message) => {
    const file = write(name, text);
    expect(mistake(() => loadQuestions(file))).toMatch(message);
  });
});
