import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { UserError } from '../errors.ts';
import type { JsonObject } from '../json.ts';
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

const HOTPOT_HUB = {
  ...{ id: '5a', question: 'Who?', answer: 'Ada', type: 'bridge', level: 'hard' },
  context: { title: ['A', 'B'], sentences: [['An a.', ' Of b.'], ['A b.']] },
};

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
    [
      "HotpotQA's questions",
      [
        {
          context: [
            ['A', ['An a.', ' Of b.']],
            ['B', ['A b.']],
          ],
        },
      ],
    ],
    ['HotpotQA on the hub', [HOTPOT_HUB, HOTPOT_HUB]],
    ['SQuAD', ['A', 'B'].map((title) => ({ title, context: title === 'A' ? 'An a. Of b.' : 'A b.', question: '?' }))],
    [
      'a list',
      [
        { title: 'A', text: 'An a.\n Of b.' },
        { title: 'B', text: ['A b.'] },
      ],
    ],
  ])('reads the passages in %s', (_, items) => {
    const passages = [
      { title: 'A', text: 'An a. Of b.' },
      { title: 'B', text: 'A b.' },
    ];
    expect(loadCorpus(write('context.jsonl', items.map((item) => JSON.stringify(item)).join('\n')))).toEqual(passages);
    expect(loadCorpus(write('context.json', `\uFEFF${JSON.stringify(items, null, 2)}`))).toEqual(passages);
  });

  test.each([
    ['empty.jsonl', ' \n', /is empty/],
    ['line.jsonl', '{"title": "A", "text": "a"}\n{"title": "B"', /line.jsonl:2: not valid JSON/],
    ['title.jsonl', '{"text": "a"}', /title.jsonl:1: "title" must be a text, found nothing/],
    ['text.jsonl', '{"title": "A", "text": 1}', /text.jsonl:1: the text of "A" must be a text or .*, found 1/],
    ['blank.jsonl', '{"title": "A", "text": " "}', /blank.jsonl:1: the text of "A" must be a text or .*, found " "/],
    ['empty.json', '{}', /empty.json is empty/],
    ['list.json', '["A"]', /list.json, item 1: expected a JSON object, found "A"/],
    ['scalar.json', '3', /scalar.json, item 1: expected a JSON object, found 3/],
    ['pair.json', '[{"context": [["A"]]}]', /pair.json, item 1: the text of "A" must be a text or .*, found nothing/],
    [
      'context.jsonl',
      '{"context": {"title": ["A"], "sentences": []}}',
      /as many titles as lists of sentences, found \{/,
    ],
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
      {
        question: 'Who?',
        answers: ['Ada'],
        supporting: ['A', 'B'],
        source: `${file}:1`,
        columns: JSON.parse(lines[0]),
      },
      { question: 'How many?', answers: ['3'], source: `${file}:2`, columns: JSON.parse(lines[1]) },
      { question: 'Where?', answers: ['here', '4'], source: `${file}:3`, columns: JSON.parse(lines[2]) },
    ]);
  });

  test("reads HotpotQA's questions", () => {
    const facts = [
      ['A', 0],
      ['B', 2],
      ['A', 1],
    ];
    const columns = { question: 'Who?', answer: 'Ada', supporting_facts: facts };
    const file = write('questions.json', JSON.stringify([columns], null, 2));
    expect(loadQuestions(file)).toEqual([
      { question: 'Who?', answers: ['Ada'], supporting: ['A', 'B'], source: `${file}, item 1`, columns },
    ]);
  });

  const FORMS: [name: string, line: JsonObject, answers: string[], supporting?: string[]][] = [
    [
      'HotpotQA on the hub',
      { ...HOTPOT_HUB, supporting_facts: { title: ['A', 'B', 'A'], sent_id: [0, 2, 1] } },
      ['Ada'],
      ['A', 'B'],
    ],
    [
      'FlashRAG',
      { id: 'test_0', question: 'Who?', golden_answers: ['Ada', 'Ada F.'], metadata: {} },
      ['Ada', 'Ada F.'],
    ],
    [
      'SQuAD',
      {
        id: '1',
        title: 'A',
        context: 'Ada.',
        question: 'Who?',
        answers: { text: ['Ada', 'Ada'], answer_start: [0, 0] },
      },
      ['Ada', 'Ada'],
    ],
    ['a number beyond doubles', { question: 'Who?', answer: 'BIG' }, ['9007199254740993']],
  ];
  test.each(FORMS)('reads %s', (_, line, answers, supporting) => {
    const file = write('form.jsonl', JSON.stringify(line).replace('"BIG"', '9007199254740993'));
    const [{ columns, ...read }] = loadQuestions(file);
    expect(read).toEqual({ question: 'Who?', answers, supporting, source: `${file}:1` });
    expect(Object.keys(columns)).toEqual(Object.keys(line));
  });

  test('reads columns of other names', () => {
    const file = write('columns.jsonl', '{"q": "Who?", "a": ["Ada", "Eve"], "answers": ["no"]}');
    const [{ question, answers }] = loadQuestions(file, { questionColumn: 'q', answerColumn: 'a' });
    expect({ question, answers }).toEqual({ question: 'Who?', answers: ['Ada', 'Eve'] });
    expect(mistake(() => loadQuestions(file))).toMatch(
      /"question" .*name one of the columns \["q","a","answers"\] with --quest/,
    );
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
    ['q2.json', '{"question": "Who?", "answer": [""]}', /q2.json:1: "answer" must be .*, found \[""\]/],
    ['q7.jsonl', '{"question": "Who?", "answers": {"text": []}}', /"answer" must be .*, found \{"text":\[\]\}/],
    ['q8.jsonl', '{"question": "Who?", "golden_answers": "a"}', /"answer" must be .*, found "a"/],
    ['q3.json', '["Who?"]', /q3.json, item 1: expected a JSON object, found "Who\?"/],
  ])('%s is refused', (name, text, message) => {
    const file = write(name, text);
    expect(mistake(() => loadQuestions(file))).toMatch(message);
  });
});

const hotpotqa = join(import.meta.dirname, '../../../shared/data/hotpotqa');
test.skipIf(!existsSync(hotpotqa))(
  "reads HotpotQA's own files, whose contexts are its corpus (skipped where ../shared is absent)",
  () => {
    const questions = loadQuestions(join(hotpotqa, 'hotpotqa_train.json'));
    const passages = loadCorpus(join(hotpotqa, 'hotpotqa_train.json'));
    expect(questions.every(({ supporting }) => supporting!.length > 0)).toBe(true);
    const byTitle = (a: { title: string }, b: { title: string }) => (a.title < b.title ? -1 : 1);
    expect(passages.toSorted(byTitle)).toEqual(
      loadCorpus(join(hotpotqa, 'hotpotqa_train_corpus.json')).toSorted(byTitle),
    );
  },
);
