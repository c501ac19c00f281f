/** JSON that came from somebody else: reading its values, and what a message may show of them. */
import { isUtf8 } from 'node:buffer';
import { readFile } from 'node:fs/promises';
import { UserError } from './errors.ts';
import { oneLine, shown } from './text.ts';

export type JsonObject = Record<string, unknown>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/**
 * Readers of one value each, which throw a {@link UserError} that names the file and the key. A fallback stands in for a
 * key that is missing or null.
 * @param prefix - what stands before the key in messages, where the object is part of another
 */
export function fieldsOf(file: string, json: JsonObject, prefix = '') {
  const fail = (key: string, expected: string) => {
    const found = key in json ? shown(json[key]) : 'nothing';
    return new UserError(`${file}: "${prefix}${key}" must be ${expected}, found ${found}.`);
  };
  return {
    integer(key: string, { fallback, max = 2 ** 31 - 1 }: { fallback?: number; max?: number } = {}): number {
      const value = json[key] ?? fallback;
      if (Number.isInteger(value) && (value as number) >= 1 && (value as number) <= max) return value as number;
      throw fail(key, `an integer from 1 to ${max}`);
    },
    number(key: string, { fallback }: { fallback?: number } = {}): number {
      const value = json[key] ?? fallback;
      if (typeof value === 'number' && Number.isFinite(value) && value > 0) return value;
      throw fail(key, 'a positive number');
    },
    boolean(key: string, fallback: boolean): boolean {
      const value = json[key] ?? fallback;
      if (typeof value === 'boolean') return value;
      throw fail(key, 'true or false');
    },
    /** One id or a list of them; null is an empty list. */
    tokenIds(key: string, fallback: number[]): number[] {
      const value = Object.hasOwn(json, key) ? (json[key] ?? []) : fallback;
      const ids: unknown[] = Array.isArray(value) ? value : [value];
      if (ids.every((id) => Number.isSafeInteger(id) && (id as number) >= 0)) return ids as number[];
      throw fail(key, 'a token id or a list of token ids');
    },
  };
}

/**
 * Reads a text file.
 * @returns the text, or null if there is no such file
 * @throws {UserError} if the file cannot be read, or is not UTF-8
 */
export async function readOptionalText(file: string): Promise<string | null> {
  try {
    const bytes = await readFile(file);
    if (!isUtf8(bytes)) throw new Error('it is not UTF-8 text');
    return bytes.toString('utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return null;
    throw new UserError(`${file}: cannot be read: ${message}`);
  }
}

/**
 * Reads a file that holds one JSON object.
 * @returns the object, or null if there is no such file
 * @throws {UserError} if the file cannot be read, or holds something else
 */
export async function readJsonObject(file: string): Promise<JsonObject | null> {
  const text = await readOptionalText(file);
  if (text === null) return null;
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new UserError(`${file}: not valid JSON: ${oneLine((error as Error).message)}`);
  }
  if (isObject(json)) return json;
  throw new UserError(`${file}: must hold a JSON object, found ${shown(json)}.`);
}
