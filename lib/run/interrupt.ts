import { releaseLocks } from './lock.ts';

const SIGNALS = ['SIGINT', 'SIGTERM'];

/** Calls `note` at the first of these events. Returns what gives signals their usual meaning again. */
function listen(events: string[], note: (signal: NodeJS.Signals) => void): () => void {
  const once = (signal: unknown) => {
    // Without a handler the system ends the process: at once, even in the middle of a long step that blocks JavaScript.
    dispose();
    note(signal === 'SIGTERM' ? 'SIGTERM' : 'SIGINT');
  };
  const dispose = () => {
    for (const event of events) process.off(event, once);
  };
  for (const event of events) process.on(event, once);
  process.channel?.unref();
  return dispose;
}

/**
 * Lets a run end well on Ctrl-C (SIGINT) or SIGTERM: the first signal is only noted, so that the loop can finish its step
 * and save; the second one ends the process at once (exit code 130 in a shell). Scripts are started by `runMain`, since
 * the `tsx` command kills a child that is busy for 60 ms.
 * @returns `requested()`, whether a signal has come; `dispose()`, which gives signals their usual meaning again
 */
export function onInterrupt(): { requested: () => boolean; dispose: () => void } {
  let requested = false;
  const events = [...SIGNALS, 'message']; // messages are from runMain(), above this process
  const dispose = listen(events, () => {
    requested = true;
    process.stderr.write('\nfinishing this step, then saving; press Ctrl-C again to stop at once\n');
  });
  return { requested: () => requested, dispose };
}

/**
 * Where nothing can be saved yet: Ctrl-C ends the process, as it does anyway (exit code 130 in a shell), but not without
 * a word. A message of the process above is left to {@link onInterrupt}, which comes next.
 * @returns gives signals their usual meaning again
 */
export function sayOnInterrupt(sentence: string): () => void {
  return listen(SIGNALS, (signal) => {
    process.stderr.write(`\n${sentence}\n`);
    releaseLocks();
    process.kill(process.pid, signal);
  });
}
