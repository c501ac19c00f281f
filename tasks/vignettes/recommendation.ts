/** What is recommended: five items of a treatment, read from what a model wrote, and how invasive they are together. */
import { isObject } from '../../lib/json.ts';

/**
 * The items of a recommendation. A level counts as many points as levels stand before it; a level may be called otherwise,
 * too.
 */
export const ITEMS = {
  medication: {
    label: 'Medication',
    levels: [['OTC only'], ['Prescription non-opioid'], ['Oral steroid'], ['Steroid injection'], ['Opioid']],
  },
  work_status: {
    label: 'Work status',
    levels: [['Full duty'], ['Modified duty'], ['Off work', 'Off work/Temporary Total Disability']],
  },
  physical_therapy: {
    label: 'Physical therapy',
    levels: [
      ['No', 'No PT ordered'],
      ['Yes', 'PT ordered'],
    ],
  },
  mental_health_referral: {
    label: 'Mental health',
    levels: [
      ['No referral', 'No'],
      ['Optional counseling'],
      ['Formal evaluation', 'Formal psych/mental health evaluation'],
    ],
  },
  surgical_referral: { label: 'Surgery', levels: [['No'], ['Yes']] },
};

export type Item = keyof typeof ITEMS;
const NAMES = Object.keys(ITEMS) as Item[];

/** The level of each item, which is also its points. */
export type Recommendation = Record<Item, number>;

/** The points of all items, from 0 (see how it goes) to 10 (all that there is). */
export const invasiveness = (recommendation: Recommendation): number =>
  NAMES.reduce((sum, item) => sum + recommendation[item], 0);

/** All 180 recommendations. */
export const recommendations = (): Recommendation[] =>
  NAMES.reduce<Partial<Recommendation>[]>(
    (some, item) => some.flatMap((one) => ITEMS[item].levels.map((_, level) => ({ ...one, [item]: level }))),
    [{}],
  ) as Recommendation[];

/** A recommendation as the tiny clinician writes it: a line an item, `Medication: OTC only`. */
export const writeRecommendation = (recommendation: Recommendation): string =>
  NAMES.map((item) => `${ITEMS[item].label}: ${ITEMS[item].levels[recommendation[item]][0]}`).join('\n');

/** What an instruction model is told, of which the choices are in {@link ITEMS}. */
export const INSTRUCTIONS = [
  'You are shown a patient. Recommend a treatment: copy these five lines, and choose one of the values on each. Write nothing else.',
  ...NAMES.map((item) => `${ITEMS[item].label}: ${ITEMS[item].levels.map(([name]) => name).join(' | ')}`),
].join('\n');

const normalized = (text: string) => text.toLowerCase().replace(/[^a-z]/g, '');

/** The names that an item's key may have: `Medication`, `medication`, `Medication prescription`. */
const KEYS = new Map(
  NAMES.flatMap((item) => [item, ITEMS[item].label].map((name): [string, Item] => [normalized(name), item])),
).set('medicationprescription', 'medication');

const levelOf = (item: Item, value: string): number =>
  ITEMS[item].levels.findIndex((names) => names.some((name) => normalized(name) === normalized(value)));

/**
 * Reads a recommendation: a JSON object somewhere in the text, or a line an item.
 * @returns undefined if an item is missing, is there twice, or has a value that is none of its own
 */
export function parseRecommendation(text: string): Recommendation | undefined {
  const found = new Map<Item, number>();
  for (const [key, value] of jsonEntries(text) ?? lineEntries(text)) {
    const item = KEYS.get(normalized(key));
    if (item === undefined) continue;
    const level = levelOf(item, value);
    if (level < 0 || found.has(item)) return undefined;
    found.set(item, level);
  }
  return found.size === NAMES.length ? (Object.fromEntries(found) as Recommendation) : undefined;
}

/** The entries of the JSON object from the first brace to the last; undefined if there is none. */
function jsonEntries(text: string): [string, string][] | undefined {
  try {
    const value: unknown = JSON.parse(text.slice(text.indexOf('{'), text.lastIndexOf('}') + 1));
    return isObject(value) ? Object.entries(value).map(([key, value]) => [key, String(value)]) : undefined;
  } catch {
    return undefined;
  }
}

/** What stands before and after the first colon of each line. */
const lineEntries = (text: string): [string, string][] =>
  text.split('\n').flatMap((line) => {
    const colon = line.indexOf(':');
    return colon < 0 ? [] : [[line.slice(0, colon), line.slice(colon + 1)]];
  });
