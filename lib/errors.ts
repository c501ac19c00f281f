import { cut, oneLine } from './text.ts';

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
