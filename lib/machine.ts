/** What this machine has and runs. */
import { totalmem } from 'node:os';

/** Bytes of memory: the machine's, or the container's where that is smaller. */
export const machineMemory = (): number =>
  Math.min(totalmem(), process.constrainedMemory() || Number.POSITIVE_INFINITY);

/** Whether a process of this number runs, be it somebody else's. */
export function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
