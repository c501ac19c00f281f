/** Text files with JSON in them. */
import { constants, isUtf8 } from 'node:buffer';
import { readFileSync, statSync } from 'node:fs';
import { UserError } from '../errors.ts';
import { isObject, type JsonObject } from '../json.ts';
import { shown } from '../text.ts';

/**
 * Reads a text, without the mark (BOM) with which some editors on Windows begin one.
 * @throws {UserError} if the file cannot be read, is longer than a text can be, or, naming the line, is not UTF-8
 */
function readText(file: string): string {
  let bytes: Buffer;
  try {
    const { size } = statSync(file);
    if (size > constants.MAX_STRING_LENGTH) {
      const megabytes = (length: number) => `${Math.ceil(length / 1e6)} MB`;
      throw new UserError(
        `the data set ${file} has ${megabytes(size)}, more than the ${megabytes(constants.MAX_STRING_LENGTH)} that can be read: take a part of it, such as its first lines`,
      );
    }
    bytes = readFileSync(file);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(
      `cannot read the data set ${file} (${(error as NodeJS.ErrnoException).code}): name a JSONL file`,
    );
  }
  if (!isUtf8(bytes)) {
    let [line, begin] = [1, 0];
    for (let end = bytes.indexOf(10); end !== -1 && isUtf8(bytes.subarray(begin, end)); line++) {
      begin = end + 1;
      end = bytes.indexOf(10, begin);
    }
    throw new UserError(`${file}:${line}: this is not text in UTF-8: save the file as UTF-8`);
  }
  return bytes.toString('utf8').replace(/^\uFEFF/, '');
}

/**
 * Reads JSON Lines, one JSON object a line, or a JSON list of objects. Empty lines are skipped.
 * @param parse - checks one object; throws an Error whose message says what was expected and what was found
 * @param options.membersOf - the objects in a file that is itself one, where there are such; its name must end in .json
 * @returns what `parse` made of each object, with the place it came from (`file:line` or `file, item n`, for messages)
 * @throws {UserError} if the file cannot be read or holds no object, or, naming the place, if one is malformed
 */
export function readJsonLines<T>(
  file: string,
  parse: (object: JsonObject) => T,
  { membersOf }: { membersOf?: (object: JsonObject) => JsonObject[] } = {},
): (T & { source: string })[] {
  const items: (T & { source: string })[] = [];
  for (const { source, value } of valuesIn(file, readText(file), membersOf)) {
    try {
      if (!isObject(value)) throw new Error(`expected a JSON object, found ${shown(value)}`);
      items.push({ ...parse(value), source });
    } catch (error) {
      throw new UserError(`${source}: ${(error as Error).message}`);
    }
  }
  if (items.length === 0) throw new UserError(`the data set ${file} is empty: ${EXPECTED}`);
  return items;
}

function* valuesIn(file: string, text: string, membersOf?: (object: JsonObject) => JsonObject[]) {
  const isOneObject = membersOf !== undefined && file.endsWith('.json');
  if (isOneObject || /^\s*\[/.test(text)) {
    const json = parseAt(file, text, isOneObject ? 'if it is JSON Lines, let its name end in .jsonl' : EXPECTED);
    const values = Array.isArray(json) ? json : isObject(json) ? membersOf!(json) : [json];
    for (const [i, value] of values.entries()) yield { source: `${file}, item ${i + 1}`, value };
    return;
  }
  let advice = EXPECTED; // said of the first line: a file whose first lines are good is what it should be
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const source = `${file}:${i + 1}`;
    const isBroken = advice !== '' && /^\s*\{[^}]*$/.test(line);
    yield { source, value: parseAt(source, line, isBroken ? `${EXPECTED}, as "jq -c . ${file}" writes it` : advice) };
    advice = '';
  }
}

const EXPECTED = 'expected one JSON object a line, or one list of objects';

function parseAt(source: string, text: string, advice: string): unknown {
  try {
    return parseJson(text);
  } catch (error) {
    throw new UserError(`${source}: not valid JSON: ${(error as Error).message}${advice && `; ${advice}`}`);
  }
}

/** Numbers of JSON, and its texts, so that what looks like a number in them is left alone. */
const TEXT_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*/g;

/**
 * Parses JSON. A number that a double cannot hold, as 9007199254740993 or 1e400, becomes the text that stands there.
 * @throws {SyntaxError} as JSON.parse does
 */
function parseJson(text: string): unknown {
  const value: unknown = JSON.parse(text);
  if (!/\d[\d.]{15}|\d[eE]/.test(text)) return value; // fewer digits always fit
  const keep = (token: string) => (token.startsWith('"') || isExact(token) ? token : `"${token}"`);
  return JSON.parse(text.replace(TEXT_OR_NUMBER, keep));
}

const isExact = (number: string): boolean => digitsOf(number) === digitsOf(String(Number(number)));

/** A number's digits and their power of ten: the same for 120, 120.0 and 1.2e2. */
function digitsOf(number: string): string | undefined {
  const [, whole, decimals = '', exponent = '0'] = /^-?(\d+)(?:\.(\d+))?(?:e([+-]?\d+))?$/i.exec(number) ?? [];
  if (whole === undefined) return undefined; // Infinity
  const digits = (whole + decimals).replace(/^0+/, '');
  const short = digits.replace(/(?<!0)0+$/, '');
  return short === '' ? '0' : `${short}e${Number(exponent) - decimals.length + digits.length - short.length}`;
}
