import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { uniform } from '../lib/run/random.ts';
import { drawEncyclopedia, encyclopediaWords, splitQuestions, taskEncyclopedia } from './encyclopedia.ts';

const lines = (name: string) =>
  readFileSync(`data/${name}.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

const task = taskEncyclopedia();
const splits = splitQuestions(task);

describe('the encyclopedia', () => {
  it('is what its script generates', () => {
    expect(lines('encyclopedia')).toEqual(task.passages);
    for (const [name, questions] of Object.entries(splits)) {
      const expected = questions.map(({ question, answer, supporting }) => ({ question, answer, supporting }));
      expect(lines(`encyclopedia_${name}`)).toEqual(expected);
    }
  });

  it('asks no held-out question in training, and none twice', () => {
    const all = [...splits.train, ...splits.test].map(({ question }) => question);
    expect(new Set(all).size).toBe(all.length);
    expect(splits.test).toHaveLength(200);
  });

  it('has a passage for every title, none twice, and a path of passages to every answer', () => {
    const passages = new Map(task.passages.map(({ title, text }) => [title, text]));
    expect(passages.size).toBe(task.passages.length);
    for (const { question, answer, supporting } of task.questions) {
      expect(question).toContain(supporting[0]);
      const path = [...supporting.slice(1), answer];
      path.forEach((next, i) => void expect(passages.get(supporting[i]), question).toContain(next));
    }
  });

  it('asks one-hop questions a third of the time', () => {
    for (const questions of Object.values(splits)) {
      const one = questions.filter(({ supporting }) => supporting.length === 1).length;
      expect(one / questions.length).toBeCloseTo(1 / 3, 2);
    }
  });

  it('is another country for other random numbers, in the same words', () => {
    let draw = 0;
    const other = drawEncyclopedia(() => uniform(1, draw++));
    expect(other.passages).not.toEqual(task.passages);
    const known = new Set(encyclopediaWords());
    const texts = [...other.passages.map(({ text }) => text), ...other.questions.map(({ question }) => question)];
    for (const word of texts.join(' ').match(/[A-Za-z]+/g)!) expect(known).toContain(word);
  });
});
