/** Whether two texts give the same answer. */

/** Numbers are compared as numbers (4 = 4.0, 1,000 = 1000), anything else as text. */
export function sameAnswer(given: string, expected: string): boolean {
  const plain = (text: string) => (/^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$/.test(text) ? text.replaceAll(',', '') : text);
  const [a, b] = [plain(given.trim()), plain(expected.trim())];
  if (a === b) return true;
  // Beyond this, different numbers would be equal as floating-point numbers.
  if (a === '' || b === '' || !(Math.abs(Number(b)) <= Number.MAX_SAFE_INTEGER)) return false;
  return Math.abs(Number(a) - Number(b)) < 1e-9;
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
