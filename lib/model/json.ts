/** JSON that came from somebody else: reading its values, and what a message may show of them. */
import { UserError } from '../run/errors.ts';

export type JsonObject = Record<string, unknown>;

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A text on one line, as messages are: what would break the line, or steer the terminal, is written as an escape. */
export const oneLine = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  text.replace(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/g, (char) => {
    return `\\u${char.charCodeAt(0).toString(16).padStart(4, '0')}`;
  });

/** A value as messages show it: as JSON, on one line, cut where it is long. */
export function shown(value: unknown): string {
  let json: string;
  try {
    json = JSON.stringify(value) ?? String(value);
  } catch {
    json = Array.isArray(value) ? '[…]' : '{…}'; // nested more deeply than can be written
  }
  return oneLine(json.length <= 120 ? json : `${json.slice(0, 120)}…`);
}

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
