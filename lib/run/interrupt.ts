import { SAME_PRESS } from '../distributed/local.ts';
import { releaseLocks } from './lock.ts';

const SIGNALS = ['SIGINT', 'SIGTERM'];

/** What the newest run does when the process above ends. */
let onDisconnect: (() => void) | undefined;

/** Calls `heard` at these events. Returns what gives signals their usual meaning again. */
function listen(events: string[], heard: (signal: NodeJS.Signals) => void): () => void {
  for (const event of events) process.on(event, heard);
  process.channel?.unref(); // listening for messages must not keep this process alive
  return () => {
    for (const event of events) process.off(event, heard);
  };
}

/**
 * Lets a run end well on Ctrl-C (SIGINT) or SIGTERM: the first signal is only noted, so that the loop can finish its step
 * and save; the second one ends the process at once (exit code 130 in a shell). A message of the process above counts as
 * the signal, and so does the end of that process.
 * @returns `requested()`, whether a signal has come; `dispose()`, which gives signals their usual meaning again
 */
export function onInterrupt(): { requested: () => boolean; dispose: () => void } {
  let requested = false;
  const request = () => {
    if (requested) return;
    requested = true;
    process.stderr.write('\nfinishing this step, then saving; press Ctrl-C again to stop at once\n');
  };
  const dispose = listen([...SIGNALS, 'message'], () => {
    request();
    // One Ctrl-C may arrive as several signals: npm passes on what the terminal has sent already.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, SAME_PRESS);
    // Without a handler the system ends the process: at once, even in the middle of a long step that blocks JavaScript.
    dispose();
  });
  // For good: it may come after all is saved, just before the user is told how to go on. Once, however many runs there are.
  if (onDisconnect === undefined) process.on('disconnect', () => onDisconnect?.());
  onDisconnect = request;
  return { requested: () => requested, dispose };
}

/**
 * Where nothing can be saved yet: Ctrl-C ends the process, as it does anyway (exit code 130 in a shell), but not without
 * a word. A message of the process above is left to {@link onInterrupt}, which comes next.
 * @returns gives signals their usual meaning again
 */
export function sayOnInterrupt(sentence: string): () => void {
  const dispose = listen(SIGNALS, (signal) => {
    dispose();
    process.stderr.write(`\n${sentence}\n`);
    releaseLocks();
    process.kill(process.pid, signal);
  });
  return dispose;
}
