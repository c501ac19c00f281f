/** Whether two texts give the same answer. */

/** What became of an answer. */
export type Verdict = 'right' | 'wrong' | 'missing';

/**
 * Whether an answer is the expected one. If that is a number, the answer must be an equal number, however it is written
 * ({@link numberIn}): whole numbers are compared exactly, others within a billionth of what is expected. Anything else is
 * compared as text, without regard to case, white space and outer punctuation. The README has a table of examples.
 */
export function sameAnswer(given: string, expected: string): boolean {
  if (unwrap(given) === unwrap(expected)) return unwrap(expected) !== '';
  const [a, b] = [numberIn(given), numberIn(expected)];
  if (b === undefined) return plainText(given) === plainText(expected) && plainText(expected) !== '';
  // "144/2", copied from the question, is no answer where 72 is expected.
  if (a === undefined || !a.isReduced) return false;
  if (a.isPercent === b.isPercent) return areEqual(a, b);
  // A % that only one has means hundredths. Or it is a unit that the other leaves out, which a share, as 0.5, is without.
  const [percent, plain] = a.isPercent ? [a, b] : [b, a];
  const isShare = magnitude(plain.numerator) < plain.denominator;
  const hundredths = { ...percent, denominator: 100n * percent.denominator };
  return areEqual(plain, hundredths) || (!isShare && areEqual(plain, percent));
}

/** A number as a fraction: doubles round 2^53 + 1, and end at 1.8e308. `isPercent`: a % follows. */
type Fraction = { numerator: bigint; denominator: bigint; isReduced: boolean; isPercent: boolean };

const DECIMAL = /^([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(?:\.(\d*))?(?:e([+-]?\d{1,3}))?$/i;
const RATIO = /^([+-]?)(?:(\d{1,15})\/(\d{1,15})|\\[dt]?frac\{(\d{1,15})\}\{(\d{1,15})\})$/;
const LONGEST = 1000;

/** What LaTeX has between thousands: 1{,}000, 1\,000, 1,\!000. */
const LATEX_SEPARATORS = /(?<=\d)(?:\{,\}|\\,|,\\!)(?=\d{3})/g;

/**
 * The number that a text is: 1234, 1,234, 1{,}234, -0.5, 6.626e-34, 1/2, \frac{1}{2}; with a currency's sign, or with %.
 * @returns undefined if the text is anything else, such as a number among words
 */
function numberIn(text: string): Fraction | undefined {
  const bare = unwrap(text).replaceAll('\u2212', '-').replace(LATEX_SEPARATORS, ',');
  if (bare.length > LONGEST) return undefined;
  const number = bare
    .replace(/(?:\s|\\,)*\\?%$/, '')
    .replace(/^([+-]?)\\?[$€£¥]\s*(?=[\d.+-])/, '$1')
    .replace(/(?<=[\d.])\s*[$€£¥]$/, '');
  const isPercent = bare.endsWith('%');
  const [, sign, p1, q1, p = p1, q = q1] = RATIO.exec(number) ?? [];
  if (p !== undefined && Number(q) > 0) {
    const isReduced = Number(q) > 1 && greatestDivisor(Number(p), Number(q)) === 1;
    return { numerator: BigInt(sign + p), denominator: BigInt(q), isReduced, isPercent };
  }
  const [, minus, whole, decimals = '', exponent = '0'] = DECIMAL.exec(number) ?? [];
  if (whole === undefined || whole + decimals === '') return undefined;
  const digits = BigInt(minus + whole.replaceAll(',', '') + decimals);
  const power = Number(exponent) - decimals.length;
  const scale = 10n ** BigInt(Math.abs(power));
  const value = power < 0 ? { numerator: digits, denominator: scale } : { numerator: digits * scale, denominator: 1n };
  return { ...value, isReduced: true, isPercent };
}

const magnitude = (x: bigint): bigint => (x < 0n ? -x : x);
const greatestDivisor = (a: number, b: number): number => (b === 0 ? a : greatestDivisor(b, a % b));

/** Whether two numbers are equal; of which not both are whole: within a billionth of the second. */
function areEqual(a: Fraction, b: Fraction): boolean {
  const [left, right] = [a.numerator * b.denominator, b.numerator * a.denominator];
  const areWhole = [a, b].every(({ numerator, denominator }) => numerator % denominator === 0n);
  return areWhole ? left === right : magnitude(left - right) * 1_000_000_000n <= magnitude(right);
}

const WRAPPERS = [
  '\\boxed{ }',
  '\\text{ }',
  '\\( \\)',
  '\\[ \\]',
  '$ $',
  '** **',
  '* *',
  '` `',
  '" "',
  "' '",
  '“ ”',
  '‘ ’',
  '« »',
].map((pair) => pair.split(' '));

/** A text without what only surrounds it: white space, a full stop, quotes, emphasis, \boxed{…} and the like. */
function unwrap(text: string): string {
  let inner = text;
  for (let layer = 0; layer < WRAPPERS.length; layer++) {
    inner = inner.trim().replace(/[.。]$/, '');
    const pair = WRAPPERS.find(([open, close]) => {
      return inner.length >= open.length + close.length && inner.startsWith(open) && inner.endsWith(close);
    });
    if (pair === undefined) break;
    inner = inner.slice(pair[0].length, inner.length - pair[1].length);
  }
  return inner;
}

/** A text without case, outer punctuation, superfluous white space, and what {@link unwrap} takes off. */
function plainText(text: string): string {
  // Looking behind, only the first of many dots is tried: that takes linear time.
  const bare = unwrap(text).replace(/^[\s.,;:!?…¿¡]+|(?<![\s.,;:!?…。！？])[\s.,;:!?…。！？]+$/g, '');
  return unwrap(bare).normalize().toLowerCase().replace(/\s+/g, ' ');
}

/** Whether an answer is one of the expected ones, word for word: exact match, as SQuAD and Search-R1 have it. */
export function exactMatch(given: string, expected: string[]): boolean {
  return expected.some((answer) => normalizeAnswer(answer) === normalizeAnswer(given));
}

/** Lower case; without punctuation (that of ASCII), articles and superfluous white space. */
export const normalizeAnswer = (text: string): string =>
  text
    .toLowerCase()
    .replace(/[!-/:-@[-`{-~]/g, '')
    .replace(/(?<![\p{L}\p{N}_])(a|an|the)(?![\p{L}\p{N}_])/gu, ' ')
    .split(/\s+/)
    .filter(Boolean)
    .join(' ');

/**
 * What stands between each `<tag>` and the next `</tag>`, without white space around it. That takes linear time; a lazy
 * regular expression would not, where many tags are opened and none is closed.
 */
export function betweenTags(text: string, tag: string): string[] {
  const open = `<${tag}>`;
  return text
    .split(`</${tag}>`)
    .slice(0, -1) // what follows the last closing tag is not closed
    .filter((part) => part.includes(open))
    .map((part) => part.slice(part.indexOf(open) + open.length).trim());
}
