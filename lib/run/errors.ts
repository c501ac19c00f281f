/**
 * A mistake that the user can mend: bad option, bad file, missing library. Its message is one sentence that says what
 * was expected, what was found, and what to do. Anything else that is thrown is a bug of ours and keeps its stack trace.
 */
export class UserError extends Error {
  override name = 'UserError';
}

/**
 * Runs a script's `main()`. A {@link UserError} ends it with its one sentence on stderr and exit code 2.
 * @param main - the script
 */
export async function runMain(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    console.error(`error: ${error.message}`);
    process.exitCode = 2;
  }
}
