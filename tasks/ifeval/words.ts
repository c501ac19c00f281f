/** Words and sentences as IFEval counts them, which in the original is nltk's work. */

/** Letters, digits and underscores in a row are a word: `don't` is two, `well-known` as well. */
export const countWords = (text: string): number => text.match(/[\p{L}\p{N}_]+/gu)?.length ?? 0;

/** Whether a text has upper-case letters, and none of lower case. */
export const isUpperCase = (text: string): boolean =>
  /\p{Uppercase}/u.test(text) && !/[\p{Lowercase}\p{Lt}]/u.test(text);

/** Whether a text has lower-case letters, and none of upper case. */
export const isLowerCase = (text: string): boolean =>
  /\p{Lowercase}/u.test(text) && !/[\p{Uppercase}\p{Lt}]/u.test(text);

/** What parts words in the Penn Treebank's way: `WELL-KNOWN`, `A/B`, `U.S.` and `1,000M` stay whole. */
const BETWEEN_WORDS = /\s+|[;@#$%&?!()[\]{}<>"«»“”‘’„`]+|[,:](?!\d)|--|\.{3}/;

/** Contractions are two words there: DO|N'T, WE|'LL. */
const INSIDE_CONTRACTION = /(?=n't$)|(?='(?:s|m|d|ll|re|ve)$)/i;

/** The number of words all in capitals; `I` is one, `X2` as well. */
export function countCapitalWords(text: string): number {
  const words = text.split(BETWEEN_WORDS).flatMap((word) => word.split(INSIDE_CONTRACTION));
  return words.filter(isUpperCase).length;
}

/** Words whose dot ends no sentence, without that dot. `P.S` is none: nltk does not know it either. */
const ABBREVIATIONS = new Set([
  ...['mr', 'mrs', 'ms', 'dr', 'prof', 'ph.d', 'rev', 'gen', 'col', 'lt', 'capt', 'sgt', 'sen', 'rep', 'gov', 'st'],
  ...['jr', 'sr', 'inc', 'ltd', 'co', 'corp', 'vs', 'etc', 'e.g', 'i.e', 'a.m', 'p.m', 'u.s', 'u.k', 'u.n', 'd.c'],
]);

/** Words that, in capitals, begin a sentence even after an abbreviation: "She moved to the U.S. It was spring." */
const STARTERS = new Set([
  ...['The', 'This', 'That', 'These', 'Those', 'It', 'He', 'She', 'We', 'They', 'There'],
  ...['But', 'However', 'And', 'In', 'If', 'When', 'My', 'Our'],
]);

/**
 * The number of sentences. One ends with a word that has a full stop, question mark or exclamation mark at its end,
 * quotes, brackets and asterisks aside; the last one ends with the text. The dots of abbreviations and initials do not
 * count, nor do three dots before a word in lower case. Intl.Segmenter lets no sentence begin in lower case; nltk does.
 */
export function countSentences(text: string): number {
  const words = text.split(/\s+/).filter(Boolean);
  return words.filter((word, i) => i === words.length - 1 || endsSentence(word, words[i + 1])).length;
}

function endsSentence(word: string, next: string): boolean {
  // Looking behind, only the first of many closing marks is tried: that takes linear time.
  const bare = word.replace(/(?<!["'”’)\]}*_])["'”’)\]}*_]+$/, '');
  if (!bare.endsWith('.')) return /[?!]$/.test(bare);
  if (bare.endsWith('..')) return !/^\p{Lowercase}/u.test(next);
  const stem = bare.slice(0, -1).replace(/^["'“‘([{*_]+/, '');
  const isInitial = /^\p{Uppercase}$/u.test(stem) && stem !== 'I';
  return !(isInitial || ABBREVIATIONS.has(stem.toLowerCase())) || STARTERS.has(next);
}
