/**
 * Writes an encyclopedia of two countries that do not exist, and questions about them: `tasks/encyclopedia/corpus.jsonl` (a
 * passage a line), `tasks/encyclopedia/train.jsonl` and `tasks/encyclopedia/test.jsonl`. A third of the questions are
 * answered by one passage, the others by two: the first names what to look up next. Nobody can know the answers by heart,
 * and what is learnt by heart about the one country in training is of no use in the other, which is held out.
 *
 *   node --import tsx tasks/encyclopedia/generate.ts
 */
import { writeFileSync } from 'node:fs';
import { runMain } from '../../lib/cli/main.ts';
import { parseNoOptions } from '../../lib/cli/options.ts';
import type { Passage } from '../../lib/environments/corpus.ts';
import { permutation, uniform } from '../../lib/random.ts';

/**
 * A question, and what kind of thing it asks for; `supporting` are the titles of the passages that lead to the answer, in
 * the order of the search.
 */
export type Question = { question: string; answer: string; asksFor: Kind; supporting: string[] };
type Kind = 'person' | 'town';

export type Encyclopedia = { passages: Passage[]; questions: Question[] };

const SEED = 24;
const TRAIN_SIZE = 600;
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

/** How many of each a country has. */
export type Sizes = { towns: number; people: number; works: number; festivals: number };
const HOME: Sizes = { towns: 36, people: 240, works: 160, festivals: 20 };
const ABROAD: Sizes = { towns: 24, people: 60, works: 40, festivals: 12 };

type Town = { name: string; river: string; mayor: Person };
type Person = { name: string; profession: string; birthplace: Town };

/**
 * Draws a country: towns, people, works and festivals with their passages, and every question that can be asked.
 * @param random - uniform numbers in [0, 1)
 * @param taken - names that other countries have; those of this one are added
 */
export function drawEncyclopedia(random: () => number, sizes: Sizes, taken = new Set<string>()): Encyclopedia {
  const pick = <T>(items: T[]): T => items[Math.floor(random() * items.length)];
  const distinct = (count: number, draw: () => string): string[] => {
    const names = new Set<string>();
    while (names.size < count) {
      const name = draw();
      if (!taken.has(name)) names.add(name);
    }
    for (const name of names) taken.add(name);
    return [...names];
  };
  const towns = distinct(sizes.towns, () => pick(TOWNS)).map((name) => ({ name, river: pick(RIVERS) }) as Town);
  const people: Person[] = distinct(sizes.people, () => `${pick(FIRST_NAMES)} ${pick(LAST_NAMES)}`).map((name) => {
    return { name, profession: pick(PROFESSIONS), birthplace: pick(towns) };
  });
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
    const { name, mayor } = town;
    ask('person', `Who is the mayor of ${name}?`, mayor.name, town);
    ask('town', `Where was the mayor of ${name} born?`, mayor.birthplace.name, town, mayor);
  }
  for (const person of people) {
    const { name, birthplace } = person;
    ask('town', `Where was ${name} born?`, birthplace.name, person);
    ask('person', `Who is the mayor of the birthplace of ${name}?`, birthplace.mayor.name, person, birthplace);
  }
  for (const work of works) {
    const { name, author } = work;
    ask('person', `Who wrote ${name}?`, author.name, work);
    ask('town', `Where was the author of ${name} born?`, author.birthplace.name, work, author);
  }
  for (const festival of festivals) {
    const { name, town } = festival;
    ask('town', `Where is the ${name} held?`, town.name, festival);
    ask('person', `Who is the mayor of the town that holds the ${name}?`, town.mayor.name, festival, town);
  }
  return { passages, questions };
}

/** The bundled task: the questions to train on are about one country, the held-out ones about another. */
export type EncyclopediaTask = { passages: Passage[]; train: Question[]; test: Question[] };

export function taskEncyclopedia(): EncyclopediaTask {
  let draw = 0;
  const random = () => uniform(SEED, draw++);
  const names = new Set<string>();
  const [home, abroad] = [HOME, ABROAD].map((sizes) => drawEncyclopedia(random, sizes, names));
  const take = ({ questions }: Encyclopedia, size: number) => {
    const ones = Math.round(size * ONE_HOP_SHARE);
    const shuffled = permutation(questions.length, SEED).map((i) => questions[i]);
    const [one, two] = [1, 2].map((hops) => shuffled.filter(({ supporting }) => supporting.length === hops));
    const taken = [...one.slice(0, ones), ...two.slice(0, size - ones)];
    return permutation(taken.length, SEED).map((i) => taken[i]);
  };
  const passages = [...home.passages, ...abroad.passages];
  return { passages, train: take(home, TRAIN_SIZE), test: take(abroad, TEST_SIZE) };
}

/** Every word that a passage or a question can hold: what a tokenizer of words must know. */
export function encyclopediaWords(): string[] {
  const { passages, train } = taskEncyclopedia();
  const texts = [...passages.map(({ text }) => text), ...train.map(({ question }) => question)];
  const names = [FIRST_NAMES, LAST_NAMES, TOWNS, RIVERS, ADJECTIVES, NOUNS, SEASONS, OCCASIONS];
  const lists = [...names, PROFESSIONS, KINDS, MONTHS];
  return [...new Set([...texts, ...lists.flat()].join(' ').match(/[A-Za-z]+/g))].sort();
}

function main(): void {
  parseNoOptions(
    'tasks/encyclopedia/generate.ts',
    'Writes the encyclopedia and the questions about it, tasks/encyclopedia/*.jsonl, as they are in the repository.',
  );
  const { passages, ...splits } = taskEncyclopedia();
  const write = (name: string, items: object[]) =>
    writeFileSync(`tasks/encyclopedia/${name}.jsonl`, items.map((item) => `${JSON.stringify(item)}\n`).join(''));
  write('corpus', passages);
  for (const [split, questions] of Object.entries(splits)) {
    const lines = questions.map(({ question, answer, supporting }) => ({ question, answer, supporting }));
    write(split, lines);
  }
}

await runMain(import.meta.url, main);
