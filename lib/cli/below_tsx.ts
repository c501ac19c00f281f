/**
 * Why `npx tsx script.ts` runs the script in a process below the one that `tsx` has started. At Ctrl-C `tsx` asks its child
 * whether it has heard the signal, and kills it with SIGKILL unless it answers within 60 ms (relaySignals in tsx's cli.mjs).
 * In the middle of a training step Node answers nobody. So tsx's child does nothing but wait, and answer, while the process
 * below takes the time it needs. Where the child was killed all the same, since the machine was busy, nothing is lost: the
 * process below sees its channel close, which it takes for Ctrl-C (../run/interrupt.ts).
 *
 * `node --import tsx script.ts`, as npm's scripts have it, has no such process above it, and starts no second one.
 */
import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { SAME_PRESS } from '../distributed/local.ts';

/**
 * Where the `tsx` command has started this process: runs the script once more in a process below it, and ends as that does.
 * @returns whether it is so
 */
export function runsBelowTsx(): boolean {
  const hook = process.execArgv.findIndex((argument) => argument.includes('preflight.cjs')); // what answers tsx
  if (hook < 1) return false;
  const execArgv = process.execArgv.toSpliced(hook - 1, 2); // without `--require` and the hook
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
  const tsx = process.ppid;
  setInterval(() => {
    if (process.ppid !== tsx) process.exit(1); // tsx was killed, and can pass nothing on any more
  }, 500);
  child.on('exit', (code, signal) => {
    process.exit(code ?? (pressed > 0 ? 130 : 128 + constants.signals[signal!]));
  });
  return true;
}
