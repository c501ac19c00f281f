/** What this machine has and runs. */
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';

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

/**
 * Cores that this process may use, as far as that can be told: those that the system or a container leaves to it, without
 * the second thread of a core, which computes nothing faster.
 */
export function physicalCores(): number {
  return Math.max(1, Math.min(availableParallelism(), coresOf(cpus().length), quota()));
}

/** Physical cores, of so many logical ones. */
function coresOf(logical: number): number {
  try {
    const folder = '/sys/devices/system/cpu';
    const siblings = readdirSync(folder)
      .filter((name) => /^cpu\d+$/.test(name))
      .map((name) => readFileSync(`${folder}/${name}/topology/thread_siblings_list`, 'utf8'));
    return new Set(siblings).size;
  } catch {
    // Not Linux: most x86 processors have two threads a core, others one.
    return process.arch === 'x64' ? Math.ceil(logical / 2) : logical;
  }
}

/** Cores that a container may use, by its share of time (cgroup v2). */
function quota(): number {
  try {
    const [most, period] = readFileSync('/sys/fs/cgroup/cpu.max', 'utf8').split(' ').map(Number);
    return most > 0 ? Math.ceil(most / period) : Number.POSITIVE_INFINITY;
  } catch {
    return Number.POSITIVE_INFINITY;
  }
}
