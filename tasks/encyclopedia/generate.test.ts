import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { uniform } from '../../lib/random.ts';
import { drawEncyclopedia, encyclopediaWords, taskEncyclopedia } from './generate.ts';

const lines = (name: string) =>
  readFileSync(`tasks/encyclopedia/${name}.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));

const { passages, ...splits } = taskEncyclopedia();
const questions = Object.values(splits).flat();

describe('the encyclopedia', () => {
  it('is what its script generates', () => {
    expect(lines('corpus')).toEqual(passages);
    for (const [name, questions] of Object.entries(splits)) {
      const expected = questions.map(({ question, answer, supporting }) => ({ question, answer, supporting }));
      expect(lines(name)).toEqual(expected);
    }
    expect([splits.train.length, splits.test.length]).toEqual([600, 200]);
  });

  it('asks no question twice, and the held-out ones about another country: no passage serves both', () => {
    expect(new Set(questions.map(({ question }) => question)).size).toBe(800);
    const titles = (split: typeof questions) => new Set(split.flatMap(({ supporting }) => supporting));
    const abroad = titles(splits.test);
    expect([...titles(splits.train)].filter((title) => abroad.has(title))).toEqual([]);
    const answers = new Set(splits.train.map(({ answer }) => answer));
    expect(splits.test.filter(({ answer }) => answers.has(answer))).toEqual([]);
  });

  it('has a passage for every title, none twice, and a path of passages to every answer', () => {
    const texts = new Map(passages.map(({ title, text }) => [title, text]));
    expect(texts.size).toBe(passages.length);
    for (const { question, answer, supporting } of questions) {
      expect(question).toContain(supporting[0]);
      const path = [...supporting.slice(1), answer];
      path.forEach((next, i) => void expect(texts.get(supporting[i]), question).toContain(next));
    }
  });

  it('asks one-hop questions a third of the time', () => {
    for (const split of Object.values(splits)) {
      const one = split.filter(({ supporting }) => supporting.length === 1).length;
      expect(one / split.length).toBeCloseTo(1 / 3, 2);
    }
  });

  it('is another country for other random numbers, in the same words', () => {
    let draw = 0;
    const other = drawEncyclopedia(() => uniform(1, draw++), { towns: 20, people: 40, works: 24, festivals: 10 });
    const titles = new Set(other.passages.map(({ title }) => title));
    expect(titles.size).toBe(94);
    const known = new Set(encyclopediaWords());
    const texts = [...other.passages.map(({ text }) => text), ...other.questions.map(({ question }) => question)];
    for (const word of texts.join(' ').match(/[A-Za-z]+/g)!) expect(known).toContain(word);
  });
});
