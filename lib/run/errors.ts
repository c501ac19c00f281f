import { oneLine, shown } from '../model/json.ts';

/**
 * A mistake that the user can mend: bad option, bad file, missing library. Its message is one sentence that says what
 * was expected, what was found, and what to do. Anything else that is thrown is a bug of ours and keeps its stack trace.
 */
export class UserError extends Error {
  override name = 'UserError';
}

/**
 * What to tell the user of an error that is no bug of ours: of a {@link UserError}, or of what the system refuses (a full
 * disk, say). Undefined for a bug. Whatever a message quotes, it is one line, and no longer than can be read.
 */
export function mistakeIn(error: unknown): string | undefined {
  const { syscall, message } = error as NodeJS.ErrnoException;
  return error instanceof UserError || syscall !== undefined ? cut(oneLine(message), 500) : undefined;
}

/** A text of at most `limit` characters: of a longer one, the beginning and (what to do, in messages) the end. */
export function cut(text: string, limit: number): string {
  if (text.length <= limit) return text;
  const end = Math.floor(limit / 3);
  return `${text.slice(0, limit - end - 1)}…${text.slice(-end)}`.replace(/\p{Surrogate}/gu, '');
}

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

/**
 * A reward that training can learn from.
 * @throws {UserError} for any other, naming the question: whoever wrote the reward must mend it
 */
export function finiteReward(reward: number, { question }: { question: string }): number {
  if (Number.isFinite(reward)) return reward;
  throw new UserError(`a reward must be a finite number, found ${reward} for a completion of ${shown(question)}`);
}

/** A text as it is typed on a shell's command line: in quotes, if it needs them. */
export const quoted = (text: string): string =>
  /^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
