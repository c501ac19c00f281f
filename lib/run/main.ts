/** Starting a script, and ending it well. */
import { spawn } from 'node:child_process';
import { realpathSync } from 'node:fs';
import { constants } from 'node:os';
import { pathToFileURL } from 'node:url';
import { UserError } from './errors.ts';

/**
 * Runs a script's `main()`, unless the script was only imported. A {@link UserError} ends it with its one sentence on
 * stderr and exit code 2.
 * @param url - the script's `import.meta.url`
 */
export async function runMain(url: string, main: () => void | Promise<void>): Promise<void> {
  if (process.argv[1] === undefined || url !== pathToFileURL(realpathSync(process.argv[1])).href) return;
  const preflight = process.execArgv.findIndex((argument) => argument.includes('preflight.cjs'));
  if (preflight > 0) return runBelow(process.execArgv.toSpliced(preflight - 1, 2));
  // Below a process of runBelow: when that one is gone, nobody waits for this run any more.
  process.once('disconnect', () => process.exit(1));
  process.channel?.unref();
  try {
    await main();
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    console.error(`error: ${error.message}`);
    process.exitCode = 2;
  }
}

/**
 * Runs this script once more, in a process below this one. The `tsx` command kills its child with SIGKILL if that does
 * not answer Ctrl-C within 60 ms, which a process in the middle of a training step cannot. This one only waits, so it
 * can; the process below hears Ctrl-C too, and takes the time it needs.
 * @param execArgv - Node's own arguments, without tsx's hook for signals
 */
function runBelow(execArgv: string[]): void {
  const child = spawn(process.execPath, [...execArgv, ...process.argv.slice(1)], {
    stdio: ['inherit', 'inherit', 'inherit', 'ipc'],
  });
  process.on('SIGINT', () => {}); // a terminal sends it to the process below as well
  process.on('SIGTERM', () => child.kill('SIGTERM'));
  child.on('exit', (code, signal) => process.exit(code ?? 128 + constants.signals[signal!]));
}
