/** Texts as messages show them. */

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

/** How many there are of something, as 1 item, 2 items. */
export const counted = (count: number, noun: string): string => `${count} ${noun}${count === 1 ? '' : 's'}`;

/** The beginning of a text that has more than `width` characters. */
export const beginning = (text: string, width: number): string =>
  text.length <= width ? text : `${text.slice(0, width - 1)}…`;

/** A text of at most `limit` characters: of a longer one, the beginning and (what to do, in messages) the end. */
export function cut(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const end = Math.floor(limit / 3);
  return `${text.slice(0, limit - end - 1)}…${text.slice(-end)}`.replace(/\p{Surrogate}/gu, '');
}

/** A text as it is typed on a shell's command line: in quotes, if it needs them. */
export const quoted = (text: string): string =>
  /^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/**
 * What is wrong with the name of a file, a folder or a model: what no file system takes, whichever it is. Undefined if
 * nothing is.
 */
export function mistakeInName(name: string): string | undefined {
  if (name === '') return 'a name must have at least one character';
  if (oneLine(name) !== name) return 'a name must have no control characters';
  if (name.length <= 4096 && name.split(/[\\/]/).every((part) => Buffer.byteLength(part) <= 255)) return undefined;
  return 'the name is too long for a file system';
}
