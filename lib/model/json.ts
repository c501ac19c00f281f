/** JSON that came from somebody else: what a message may show of it. */

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
