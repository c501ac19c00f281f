/**
 * Lets a run end well on Ctrl-C (SIGINT) or SIGTERM: the first signal is only noted, so that the loop can finish its step
 * and save; the second one ends the process at once (exit code 130 in a shell). Scripts are started by `runMain`, since
 * the `tsx` command kills a child that is busy for 60 ms.
 * @returns `requested()`, whether a signal has come; `dispose()`, which gives signals their usual meaning again
 */
export function onInterrupt(): { requested: () => boolean; dispose: () => void } {
  let requested = false;
  const dispose = () => {
    process.off('SIGINT', note);
    process.off('SIGTERM', note);
    process.off('message', note);
  };
  const note = () => {
    requested = true;
    // Without a handler the system ends the process: at once, even in the middle of a long step that blocks JavaScript.
    dispose();
    process.stderr.write('\nfinishing this step, then saving; press Ctrl-C again to stop at once\n');
  };
  process.on('SIGINT', note);
  process.on('SIGTERM', note);
  process.on('message', note); // from runMain(), above this process
  process.channel?.unref();
  return { requested: () => requested, dispose };
}
