/**
 * Writes the encyclopedia of a country that does not exist, and questions about it: `data/encyclopedia.jsonl` (a passage
 * a line), `data/encyclopedia_train.jsonl` and `data/encyclopedia_test.jsonl`. A third of the questions are answered by
 * one passage, the others by two or three: the first names what to look up next. Nobody can know the answers by heart.
 *
 *   npx tsx data/encyclopedia.ts
 */
import { writeFileSync } from 'node:fs';
import { runMain } from '../lib/run/main.ts';
import { permutation, uniform } from '../lib/run/random.ts';

export type Passage = { title: string; text: string };

/**
 * A question, and what kind of thing it asks for; `supporting` are the titles of the passages that lead to the answer, in
 * the order of the search.
 */
export type Question = { question: string; answer: string; asksFor: Kind; supporting: string[] };
type Kind = 'river' | 'person' | 'profession' | 'town' | 'month';

export type Encyclopedia = { passages: Passage[]; questions: Question[] };

const SEED = 24;
const TRAIN_SIZE = 900;
const TEST_SIZE = 200;

/** How many questions can be answered from one passage. */
const ONE_HOP_SHARE = 1 / 3;

const cross = (beginnings: string, endings: string) =>
  beginnings.split(' ').flatMap((beginning) => endings.split(' ').map((ending) => beginning + ending));

const FIRST_NAMES = cross('Ad Bel Cor Dar El Fen Gal Hes Il Jor', 'an ia o une ric eth');
const LAST_NAMES = cross('Ash Brin Cald Dun Ever Fal Grim Hol Kest Lor', 'ack ber dul vok mar tine');
const TOWNS = cross('Or Vel Tam Quil Zar Nim Bro Skel Ith Pav', 'vale mouth stead haven grove mere');
const RIVERS = cross('Tess Ond Rhu Lym Yar Vash', 'in el a or une');
const ADJECTIVES =
  'Silver Broken Silent Crimson Hollow Golden Distant Frozen Hidden Burning Quiet Gentle Bitter Wandering Ancient Pale Restless Shining Lonely Velvet'.split(
    ' ',
  );
const NOUNS =
  'Lantern Harbour Orchard Mirror Bridge Garden Compass Window Tower Feather Meadow Anchor Candle Forest Kingdom Shadow River Letter Winter Crown'.split(
    ' ',
  );
const SEASONS = 'Frost Harvest Kite Lamp Salt Honey Drum Mask Ember Moon Barley Ribbon'.split(' ');
const OCCASIONS = 'Fair Race Feast'.split(' ');
const PROFESSIONS = 'painter baker sailor teacher weaver doctor farmer singer smith judge gardener tailor'.split(' ');
const KINDS = 'novel song play poem'.split(' ');
const MONTHS = 'January February March April May June July August September October November December'.split(' ');

export const SIZES = { towns: 60, people: 180, works: 120, festivals: 30 };

type Town = { name: string; river: string; mayor: Person };
type Person = { name: string; profession: string; birthplace: Town };

/**
 * Draws a country: towns, people, works and festivals with their passages, and every question that can be asked.
 * @param random - uniform numbers in [0, 1)
 * @param sizes - how many of each; at most {@link SIZES}' order of magnitude: names are combined from lists
 */
export function drawEncyclopedia(random: () => number, sizes = SIZES): Encyclopedia {
  const pick = <T>(items: T[]): T => items[Math.floor(random() * items.length)];
  const distinct = (count: number, draw: () => string): string[] => {
    const names = new Set<string>();
    while (names.size < count) names.add(draw());
    return [...names];
  };
  const towns = distinct(sizes.towns, () => pick(TOWNS)).map((name) => ({ name, river: pick(RIVERS) }) as Town);
  const people: Person[] = distinct(sizes.people, () => `${pick(FIRST_NAMES)} ${pick(LAST_NAMES)}`).map((name) => ({
    name,
    profession: pick(PROFESSIONS),
    birthplace: pick(towns),
  }));
  for (const town of towns) town.mayor = pick(people);
  const works = distinct(sizes.works, () => `${pick(ADJECTIVES)} ${pick(NOUNS)}`).map((name) => ({
    name,
    kind: pick(KINDS),
    author: pick(people),
  }));
  const festivals = distinct(sizes.festivals, () => `${pick(SEASONS)} ${pick(OCCASIONS)}`).map((name) => ({
    name,
    town: pick(towns),
    month: pick(MONTHS),
  }));

  const passages = [
    ...towns.map(({ name, river, mayor }) => [name, `lies on the river ${river} . Its mayor is ${mayor.name} .`]),
    ...people.map(({ name, profession, birthplace }) => [name, `is a ${profession} born in ${birthplace.name} .`]),
    ...works.map(({ name, kind, author }) => [name, `is a ${kind} by ${author.name} .`]),
    ...festivals.map(({ name, town, month }) => [name, `is held in ${town.name} every ${month} .`]),
  ].map(([title, text]) => ({ title, text: `${title} ${text}`.replaceAll(' .', '.') }));

  const questions: Question[] = [];
  const ask = (asksFor: Kind, question: string, answer: string, ...path: { name: string }[]) =>
    questions.push({ question, answer, asksFor, supporting: path.map(({ name }) => name) });
  for (const town of towns) {
    const { name, river, mayor } = town;
    ask('river', `On which river does ${name} lie?`, river, town);
    ask('person', `Who is the mayor of ${name}?`, mayor.name, town);
    ask('profession', `What is the profession of the mayor of ${name}?`, mayor.profession, town, mayor);
    ask('town', `Where was the mayor of ${name} born?`, mayor.birthplace.name, town, mayor);
  }
  for (const person of people) {
    const { name, profession, birthplace } = person;
    ask('profession', `What is the profession of ${name}?`, profession, person);
    ask('town', `Where was ${name} born?`, birthplace.name, person);
    ask('river', `On which river does the birthplace of ${name} lie?`, birthplace.river, person, birthplace);
    ask('person', `Who is the mayor of the birthplace of ${name}?`, birthplace.mayor.name, person, birthplace);
  }
  for (const work of works) {
    const { name, author } = work;
    ask('person', `Who wrote ${name}?`, author.name, work);
    ask('profession', `What is the profession of the author of ${name}?`, author.profession, work, author);
    ask('town', `Where was the author of ${name} born?`, author.birthplace.name, work, author);
  }
  for (const festival of festivals) {
    const { name, town, month } = festival;
    ask('town', `Where is the ${name} held?`, town.name, festival);
    ask('month', `In which month is the ${name} held?`, month, festival);
    ask('river', `On which river is the ${name} held?`, town.river, festival, town);
    ask('person', `Who is the mayor of the town that holds the ${name}?`, town.mayor.name, festival, town);
  }
  return { passages, questions };
}

/** Every word that a passage or a question can hold: what a tokenizer of words must know. */
export function encyclopediaWords(): string[] {
  const { passages, questions } = taskEncyclopedia();
  const texts = [...passages.map(({ text }) => text), ...[...questions].map(({ question }) => question)];
  const names = [FIRST_NAMES, LAST_NAMES, TOWNS, RIVERS, ADJECTIVES, NOUNS, SEASONS, OCCASIONS];
  const lists = [...names, PROFESSIONS, KINDS, MONTHS];
  return [...new Set([...texts, ...lists.flat()].join(' ').match(/[A-Za-z]+/g))].sort();
}

/** A sequence of uniform numbers. */
function stream(seed: number): () => number {
  let draw = 0;
  return () => uniform(seed, draw++);
}

export const taskEncyclopedia = (): Encyclopedia => drawEncyclopedia(stream(SEED));

/** Held-out questions and those to train on, no question in both. */
export function splitQuestions({ questions }: Encyclopedia): { train: Question[]; test: Question[] } {
  const shuffled = permutation(questions.length, SEED).map((i) => questions[i]);
  const [one, more] = [1, 2].map((hops) =>
    shuffled.filter(({ supporting }) => Math.min(2, supporting.length) === hops),
  );
  const take = (from: number, size: number) => {
    const ones = one.slice(Math.round(from * ONE_HOP_SHARE), Math.round((from + size) * ONE_HOP_SHARE));
    const mores = more.slice(Math.round(from * (1 - ONE_HOP_SHARE)), Math.round((from + size) * (1 - ONE_HOP_SHARE)));
    const both = [...ones, ...mores];
    return permutation(both.length, SEED, from).map((i) => both[i]);
  };
  return { test: take(0, TEST_SIZE), train: take(TEST_SIZE, TRAIN_SIZE) };
}

function main(): void {
  const encyclopedia = taskEncyclopedia();
  const write = (name: string, items: object[]) =>
    writeFileSync(`data/${name}.jsonl`, items.map((item) => `${JSON.stringify(item)}\n`).join(''));
  write('encyclopedia', encyclopedia.passages);
  for (const [split, questions] of Object.entries(splitQuestions(encyclopedia))) {
    const lines = questions.map(({ question, answer, supporting }) => ({ question, answer, supporting }));
    write(`encyclopedia_${split}`, lines);
  }
}

await runMain(import.meta.url, main);
