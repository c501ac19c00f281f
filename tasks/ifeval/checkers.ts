/**
 * The 25 kinds of instructions that IFEval verifies without a judge (Zhou et al. 2023, "Instruction-Following Evaluation
 * for Large Language Models", arXiv 2311.07911): of a response to "write a poem with at least 3 highlighted sections",
 * whether it has them.
 */
import { UserError } from '../../lib/errors.ts';
import { isObject, type JsonObject } from '../../lib/json.ts';
import { shown } from '../../lib/text.ts';
import { isIn, LANGUAGES, type Language } from './language.ts';
import { countCapitalWords, countSentences, countWords, isLowerCase, isUpperCase } from './words.ts';

/** What a response must do: `{ id: 'length_constraints:number_words', kwargs: { num_words: 300, relation: 'at least' } }`. */
export type Instruction = { id: string; kwargs: JsonObject };

/** Whether a response follows an instruction with these arguments. */
type Checker = (response: string, kwargs: Kwargs) => boolean;
type Kwargs = ReturnType<typeof kwargsOf>;

/** The checkers by the ids of their instructions. Case matters only where it is said to. */
export const CHECKERS: Record<string, Checker> = {
  // All of the keywords are there, be it inside of other words.
  'keywords:existence': (response, kwargs) =>
    kwargs.texts('keywords').every((keyword) => countOf(keyword, response) > 0),

  'keywords:frequency': (response, kwargs) =>
    kwargs.compare(countOf(kwargs.text('keyword'), response), 'relation', 'frequency'),

  // None of the words is there as a word of its own.
  'keywords:forbidden_words': (response, kwargs) =>
    !kwargs
      .texts('forbidden_words')
      .some((word) => new RegExp(`(?<![\\p{L}\\p{N}_])${literally(word)}(?![\\p{L}\\p{N}_])`, 'iu').test(response)),

  'keywords:letter_frequency': (response, kwargs) =>
    kwargs.compare(countOf(kwargs.letter('letter'), response), 'let_relation', 'let_frequency'),

  'language:response_language': (response, kwargs) => isIn(kwargs.language('language'), response),

  'length_constraints:number_sentences': (response, kwargs) =>
    kwargs.compare(countSentences(response), 'relation', 'num_sentences'),

  // Paragraphs are what three asterisks part. The response may begin or end with these; none in between may be empty.
  'length_constraints:number_paragraphs': (response, kwargs) => {
    const expected = kwargs.count('num_paragraphs');
    const paragraphs = withoutBlankEnds(response.split('***'));
    return paragraphs.length === expected && paragraphs.every(isNotBlank);
  },

  'length_constraints:number_words': (response, kwargs) =>
    kwargs.compare(countWords(response), 'relation', 'num_words'),

  // Paragraphs are what an empty line parts. Which is the nth, counts empty ones as well; how many there are, does not.
  'length_constraints:nth_paragraph_first_word': (response, kwargs) => {
    const [count, nth] = [kwargs.count('num_paragraphs'), kwargs.count('nth_paragraph')];
    const expected = kwargs.text('first_word').toLowerCase();
    const paragraphs = response.split('\n\n');
    const [first] = (paragraphs[nth - 1] ?? '').trim().split(/\s/);
    const [word] = first.replace(/^'*"*/, '').split(/[.,?!'"]/);
    return paragraphs.filter(isNotBlank).length === count && word.toLowerCase() === expected;
  },

  // Placeholders are [in brackets], on one line: each ] that has a [ before it, and no other ] between them.
  'detectable_content:number_placeholders': (response, kwargs) => {
    const closed = response.split('\n').flatMap((line) => line.split(']').slice(0, -1));
    return closed.filter((text) => text.includes('[')).length >= kwargs.count('num_placeholders');
  },

  // The marker is anywhere, in either case; a space may follow the dots in it.
  'detectable_content:postscript': (response, kwargs) => {
    const marker = literally(kwargs.text('postscript_marker')).replace(/\\\.(?=.)/g, '\\.\\s?');
    return new RegExp(marker, 'iu').test(response);
  },

  // Exactly so many lines that begin with one asterisk, not two, or with a hyphen.
  'detectable_format:number_bullet_lists': (response, kwargs) => {
    const bullets = response.match(/(?<![^\n])[^\S\n]*(?:\*[^*][^\n]*|-)/g) ?? [];
    return bullets.length === kwargs.count('num_bullets');
  },

  // One of these three is there, letter for letter.
  'detectable_format:constrained_response': (response) =>
    ['My answer is yes.', 'My answer is no.', 'My answer is maybe.'].some((option) => response.includes(option)),

  // *So* or **so**, on one line: of the latter, the first pattern finds the asterisks alone, with nothing between them.
  'detectable_format:number_highlighted_sections': (response, kwargs) => {
    const highlights = [/\*([^\n*]*)\*/g, /\*\*([^\n*]*)\*\*/g].flatMap((pattern) => [...response.matchAll(pattern)]);
    return highlights.filter(([, text]) => isNotBlank(text)).length >= kwargs.count('num_highlights');
  },

  // The word that begins a section, in the given case, with a number after it, so many times or more.
  'detectable_format:multiple_sections': (response, kwargs) => {
    const beginning = new RegExp(`${literally(kwargs.text('section_spliter'))}\\s?\\p{Nd}`, 'gu');
    return (response.match(beginning) ?? []).length >= kwargs.count('num_sections');
  },

  // All of it is JSON, be it in a block of code. Python's NaN and Infinity, which pass in the original, are none.
  'detectable_format:json_format': (response) => {
    try {
      JSON.parse(response.trim().replace(/^```(?:json|Json|JSON)?|```$/g, ''));
      return true;
    } catch {
      return false;
    }
  },

  // A line has something <<in double angular brackets>>.
  'detectable_format:title': (response) =>
    response.split('\n').some((line) => {
      const [begin, end] = [line.indexOf('<<'), line.lastIndexOf('>>')];
      return begin >= 0 && end > begin && /[^<>\s]/.test(line.slice(begin, end));
    }),

  // Two different texts with six asterisks between them; the response may begin or end with these as well.
  'combination:two_responses': (response) => {
    const responses = withoutBlankEnds(response.split('******')).map((text) => text.trim());
    return responses.length === 2 && responses[0] !== responses[1];
  },

  'combination:repeat_prompt': (response, kwargs) =>
    response.trim().toLowerCase().startsWith(kwargs.text('prompt_to_repeat').toLowerCase()),

  // The last words are these, in either case; quotes may follow.
  'startend:end_checker': (response, kwargs) => {
    const end = response.trim().replace(/(?<!")"+$/, '');
    return end.toLowerCase().endsWith(kwargs.text('end_phrase').toLowerCase());
  },

  'startend:quotation': (response) => /^".*"$/s.test(response.trim()),

  'change_case:capital_word_frequency': (response, kwargs) =>
    kwargs.compare(countCapitalWords(response), 'capital_relation', 'capital_frequency'),

  'change_case:english_capital': (response) => isUpperCase(response) && isIn('en', response),

  'change_case:english_lowercase': (response) => isLowerCase(response) && isIn('en', response),

  'punctuation:no_comma': (response) => !response.includes(','),
};

const isNotBlank = (text: string): boolean => text.trim() !== '';

/** Texts without the first and the last one, where these are blank. */
const withoutBlankEnds = (texts: string[]): string[] =>
  texts.filter((text, i) => isNotBlank(text) || (i > 0 && i < texts.length - 1));

/** How often a text is part of another, in either case. */
const countOf = (part: string, text: string): number => text.toLowerCase().split(part.toLowerCase()).length - 1;

/** A text as a regular expression that finds it. */
const literally = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');

/** Readers of an instruction's arguments, which throw a {@link UserError} that names both. */
function kwargsOf({ id, kwargs }: Instruction) {
  function read<T>(key: string, expected: string, isExpected: (value: unknown) => boolean): T {
    const value = isObject(kwargs) && Object.hasOwn(kwargs, key) ? kwargs[key] : undefined;
    if (isExpected(value)) return value as T;
    throw new UserError(`${id}: "${key}" must be ${expected}, found ${value === undefined ? 'nothing' : shown(value)}`);
  }
  const isText = (value: unknown) => typeof value === 'string' && isNotBlank(value);
  const count = (key: string) =>
    read<number>(key, 'a whole number', (value) => Number.isSafeInteger(value) && Number(value) >= 0);
  return {
    count,
    text: (key: string) => read<string>(key, 'a text', isText).trim(),
    texts: (key: string) =>
      read<string[]>(key, 'a list of texts', (value) => {
        return Array.isArray(value) && value.length > 0 && value.every(isText);
      }),
    letter: (key: string) =>
      read<string>(key, 'one character', (value) => isText(value) && [...(value as string)].length === 1),
    language: (key: string) =>
      read<Language>(key, `one of ${LANGUAGES.join(', ')}`, (value) => LANGUAGES.includes(value as Language)),
    /** Whether a number is `at least` what the argument `limit` says, or `less than` that. */
    compare: (found: number, relation: string, limit: string) => {
      const isRelation = (value: unknown) => value === 'at least' || value === 'less than';
      const isLower = read<string>(relation, '"at least" or "less than"', isRelation) === 'less than';
      return isLower ? found < count(limit) : found >= count(limit);
    },
  };
}

/**
 * Whether a response follows an instruction to the letter. A blank response follows none.
 * @throws {UserError} if there is no such instruction, or it has not the arguments that it needs
 */
export function followsStrict(response: string, instruction: Instruction): boolean {
  if (!Object.hasOwn(CHECKERS, instruction.id)) {
    throw new UserError(
      `an instruction must be one of IFEval's ${Object.keys(CHECKERS).length}, such as "keywords:existence", found ${shown(instruction.id)}`,
    );
  }
  // Even if the response is blank, a mistake in the arguments is to be found.
  const follows = CHECKERS[instruction.id](response, kwargsOf(instruction));
  return follows && isNotBlank(response);
}

/**
 * Whether a response, or what is left of it without its first line, its last, or both, with or without its asterisks,
 * follows an instruction: "Sure, here it is:" is forgiven, and so is emphasis.
 * @throws {UserError} as {@link followsStrict}
 */
export function followsLoose(response: string, instruction: Instruction): boolean {
  const lines = response.split('\n');
  const parts = [lines.slice(1), lines.slice(0, -1), lines.slice(1, -1)].map((part) => part.join('\n').trim());
  const variants = [response, ...parts].flatMap((text) => [text, text.replaceAll('*', '')]);
  return [...new Set(variants)].some((variant) => followsStrict(variant, instruction));
}

/** Verdicts on a response, in the order of its instructions, and whether each of these is followed. */
export type Scores = { strict: boolean[]; loose: boolean[]; isAllStrict: boolean; isAllLoose: boolean };

/**
 * The verdicts on a response. Over many responses, the mean of `isAllStrict` is the paper's strict prompt-level
 * accuracy, and that of all of `strict` its strict instruction-level accuracy; loose likewise.
 * @throws {UserError} as {@link followsStrict}
 */
export function scores(response: string, instructions: Instruction[]): Scores {
  const strict = instructions.map((instruction) => followsStrict(response, instruction));
  const loose = instructions.map((instruction) => followsLoose(response, instruction));
  return { strict, loose, isAllStrict: strict.every(Boolean), isAllLoose: loose.every(Boolean) };
}
