/**
 * A mistake that the user can mend: bad option, bad file, missing library. Its message is one sentence that says what
 * was expected, what was found, and what to do. Anything else that is thrown is a bug of ours and keeps its stack trace.
 */
export class UserError extends Error {
  override name = 'UserError';
}
