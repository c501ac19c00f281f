/** Which language a response is in, of those that IFEval asks for. */
import { franc } from 'franc';

/** The languages of IFEval, in ISO 639-1 as its prompts have them, and in ISO 639-3 as franc does. */
const CODES = {
  ar: 'arb',
  bg: 'bul',
  bn: 'ben',
  de: 'deu',
  en: 'eng',
  es: 'spa',
  fa: 'pes',
  fi: 'fin',
  fr: 'fra',
  gu: 'guj',
  he: 'heb',
  hi: 'hin',
  it: 'ita',
  ja: 'jpn',
  kn: 'kan',
  ko: 'kor',
  ml: 'mal',
  mr: 'mar',
  ne: 'npi',
  pa: 'pan',
  pl: 'pol',
  pt: 'por',
  ru: 'rus',
  sw: 'swh',
  ta: 'tam',
  te: 'tel',
  th: 'tha',
  uk: 'ukr',
  ur: 'urd',
  vi: 'vie',
};

export type Language = keyof typeof CODES;

export const LANGUAGES = Object.keys(CODES) as Language[];

/**
 * Whether a text is in a language rather than in any other of {@link LANGUAGES}, by the trigrams of its first 2,048
 * characters. A text without letters is in every language, as in the original, where the detector gives up on it.
 */
export function isIn(language: Language, text: string): boolean {
  // Among all 187 languages that franc knows, a few English words without an article easily pass for Norwegian.
  const detected = franc(text, { only: Object.values(CODES), minLength: 1 });
  return detected === CODES[language] || !/\p{L}/u.test(text);
}
