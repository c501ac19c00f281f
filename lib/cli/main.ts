/** Starting a script, and ending it well. */
import { spawn } from 'node:child_process';
import { existsSync, realpathSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { inspect } from 'node:util';
import { SAME_PRESS } from '../distributed/local.ts';
import { mistakeIn } from '../errors.ts';
import { oneLine } from '../text.ts';

/**
 * Runs a script's `main()`, unless the script was only imported. A user's mistake ({@link mistakeIn}) ends it with its one sentence on
 * stderr and exit code 2, a bug with its stack and exit code 1.
 * @param url - the script's `import.meta.url`
 */
export async function runMain(url: string, main: () => void | Promise<void>): Promise<void> {
  const script = process.argv[1];
  if (!script || !existsSync(script) || url !== pathToFileURL(realpathSync(script)).href) return;
  const preflight = process.execArgv.findIndex((argument) => argument.includes('preflight.cjs'));
  if (preflight > 0) return runBelow(process.execArgv.toSpliced(preflight - 1, 2));
  // Below a process of runBelow: when that one is gone, nobody waits for this run any more.
  process.once('disconnect', () => process.exit(1));
  process.channel?.unref();
  // Who reads the output may stop early, as `head` does, and a disk may fill: the run goes on, its folder has everything.
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {});
  process.on('uncaughtException', (error) => endWith(error));
  try {
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
  // A terminal sends Ctrl-C to the process below as well, so a signal is passed on as a message, which counts once.
  let pressed = 0;
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      child.send(signal, () => {});
      // The second time it is to stop at once, also in the middle of a step that lets no signal through.
      if (pressed > 0 && performance.now() - pressed > SAME_PRESS) setTimeout(() => child.kill('SIGKILL'), SAME_PRESS);
      pressed ||= performance.now();
    });
  }
  const parent = process.ppid;
  setInterval(() => {
    if (process.ppid === parent) return;
    child.kill('SIGKILL'); // tsx was killed, and can pass nothing on any more
    process.exit(1);
  }, 500);
  child.on('exit', (code, signal) => {
    process.exit(code ?? (pressed > 0 ? 130 : 128 + constants.signals[signal!]));
  });
}
