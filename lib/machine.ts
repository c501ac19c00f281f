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
  const folder = '/sys/devices/system/cpu';
  const siblings = listed(folder).flatMap((name) => {
    const list = /^cpu\d+$/.test(name) ? textOf(`${folder}/${name}/topology/thread_siblings_list`) : undefined;
    return list ?? []; // one that is switched off has none
  });
  if (siblings.length > 0) return new Set(siblings).size;
  // Not Linux: most x86 processors have two threads a core, others one.
  return process.arch === 'x64' ? Math.ceil(logical / 2) : logical;
}

/** Cores that a container may use, by its share of time (cgroup v2). */
function quota(): number {
  const [most, period] = (textOf('/sys/fs/cgroup/cpu.max') ?? 'max 1').split(' ').map(Number);
  return most > 0 ? Math.ceil(most / period) : Number.POSITIVE_INFINITY;
}

const textOf = (file: string): string | undefined => {
  try {
    return readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
};

const listed = (folder: string): string[] => {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
};
