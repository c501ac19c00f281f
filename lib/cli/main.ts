/** Starting a script, and ending it well. */
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';
import { loadEnvFile } from '../env_file.ts';
import { mistakeIn } from '../errors.ts';
import { oneLine } from '../text.ts';
import { runsBelowTsx } from './below_tsx.ts';

/**
 * Runs a script's `main()`, unless the script was only imported. A user's mistake ({@link mistakeIn}) ends it with its one sentence on
 * stderr and exit code 2, a bug with its stack and exit code 1.
 * @param url - the script's `import.meta.url`
 */
export async function runMain(url: string, main: () => void | Promise<void>): Promise<void> {
  const script = process.argv[1];
  if (!script || !existsSync(script) || url !== pathToFileURL(realpathSync(script)).href) return;
  if (runsBelowTsx()) return;
  // Below another process (tools/compare.ts, ./below_tsx.ts): when that one is gone, nobody waits for this one any more.
  process.once('disconnect', () => {
    if (process.listenerCount('disconnect') === 0) process.exit(1); // else there is something to be saved first
  });
  process.channel?.unref();
  // Who reads the output may stop early, as `head` does, and a disk may fill: the run goes on, its folder has everything.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  process.on('uncaughtException', (error) => endWith(error));
  try {
    loadEnvFile(); // before anything is fetched
    await main();
  } catch (error) {
    endWith(error, elsewhere(error, dirname(realpathSync(script))));
  }
}

/** What explains that a file is missing: that the script was not started where the files are that come with it. */
function elsewhere(error: unknown, folder: string): string {
  const root = existsSync(join(folder, 'package.json')) || folder === dirname(folder) ? folder : undefined;
  if (root === undefined) return elsewhere(error, dirname(folder));
  if (process.cwd() === root || !/ENOENT|no such/.test(mistakeIn(error) ?? '')) return '';
  return `note: this was started in ${oneLine(process.cwd())}; tasks/ and models/ are found from ${oneLine(root)} only\n`;
}

/** Ends the process because of an error. Node itself would also print the line that threw, which may be minified. */
function endWith(error: unknown, note = ''): void {
  const mistake = mistakeIn(error);
  process.exitCode = mistake === undefined ? 1 : 2;
  process.stderr.write(`${mistake === undefined ? inspect(error) : `error: ${mistake}`}\n${note}`, () =>
    process.exit(),
  );
}
