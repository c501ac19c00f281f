/** One process at a time writes a folder. */
import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { UserError } from '../errors.ts';
import { isRunning } from '../machine.ts';

// Each process that wants the folder puts an empty file into it, whose name says who it is, and only then looks for those
// of others: of two, the later one is sure to see the earlier. It writes into its file once it has the folder.
// A single file under one name would have to be removed when its process is gone, and by the time that is done it might be
// the file of the next one. Such names are of one process for good.
const NAME = /^\.lock-(?<pid>\d+)-(?<start>[\w.]+)-(?<space>\d+)@(?<host>.+)$/;
type Owner = { pid: number; start: string; space: string; host: string };
const nameOf = ({ pid, start, space, host }: Owner): string => `.lock-${pid}-${start}-${space}@${host}`;

/** Who has put an entry into a folder as a lock. */
function ownerIn(name: string): Owner | undefined {
  const parts = NAME.exec(name)?.groups as Record<keyof Owner, string> | undefined;
  return parts && { ...parts, pid: Number(parts.pid) };
}

/** Whether a folder's entry is a lock. */
export const isLock = (name: string): boolean => NAME.test(name);

/** Milliseconds to wait for others that ask at the same time to give way. */
const PATIENCE = 2000;

const held = new Set<string>();
process.on('exit', () => releaseLocks());

/**
 * Reserves a folder for this process until it ends, or until {@link releaseLocks}; a process that has it already keeps it.
 * What a killed process has left is removed, if it was one of this machine.
 * @returns throws a {@link UserError} once the folder was deleted, moved or replaced, so that it is not there any more
 * @throws {UserError} if another process has it
 */
export function lockFolder(folder: string): () => void {
  const own = nameOf(describe(process.pid));
  const file = join(realpathSync(folder), own);
  const check = () => {
    if (existsSync(file)) return;
    throw new UserError(
      `${folder} was deleted, moved or replaced while it was written, so this run ends: if it was moved, --resume with its new name continues it`,
    );
  };
  if (held.has(file) && existsSync(file)) return check;
  writeFileSync(file, '');
  held.add(file);
  for (const began = performance.now(); ; ) {
    const others = ownersOf(folder).filter((other) => nameOf(other) !== own);
    if (others.length === 0) {
      writeFileSync(file, 'held\n');
      return check;
    }
    // Of several that ask, all but the one of the lowest number give way.
    const first = others.find((other) => other.pid <= process.pid || hasIt(folder, other));
    if (first || performance.now() - began > PATIENCE) {
      rmSync(file, { force: true });
      held.delete(file);
      throw new UserError(refusal(folder, first ?? others[0]));
    }
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
  }
}

/**
 * Whether a process writes a folder; `killed`: one that did is gone, and has not given it back. Changes nothing. A process
 * of another machine counts as running.
 */
export function writerOf(folder: string): 'running' | 'killed' | 'none' {
  const owners = readdirSync(folder).flatMap((name) => ownerIn(name) ?? []);
  if (owners.length === 0) return 'none';
  return owners.every(isGone) ? 'killed' : 'running';
}

const hasIt = (folder: string, owner: Owner) =>
  (statSync(join(folder, nameOf(owner)), { throwIfNoEntry: false })?.size ?? 0) > 0;

/** Gives back all folders that this process has. At the end of the process that is done anyway, unless a signal ends it. */
export function releaseLocks(): void {
  for (const file of held) rmSync(file, { force: true });
  held.clear();
}

/** Who has a folder or asks for it; the locks of processes that are gone are removed. */
function ownersOf(folder: string): Owner[] {
  return readdirSync(folder).flatMap((name) => {
    const owner = ownerIn(name);
    if (!owner) return [];
    if (!isGone(owner)) return [owner];
    rmSync(join(folder, name), { force: true });
    return [];
  });
}

function isGone({ pid, start, space, host }: Owner): boolean {
  const now = describe(pid);
  if (host !== now.host || space !== now.space) return false; // nothing is known of it
  if (!isRunning(pid)) return true;
  return start !== now.start && now.start !== UNKNOWN;
}

const UNKNOWN = 'unknown';

/** What identifies a process: its number, and on Linux when it started and the namespace (container) of that number. */
function describe(pid: number): Owner {
  const read = <T>(from: () => T, otherwise: T): T => {
    try {
      return from();
    } catch {
      return otherwise;
    }
  };
  const start = read(() => {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').slice(0, 8);
    // The name of the program stands first, in parentheses, and may itself hold some.
    const [state, ...fields] = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
    return 'ZX'.includes(state) ? 'ended' : `${boot}.${fields[18]}`;
  }, UNKNOWN);
  const space = read(() => readlinkSync('/proc/self/ns/pid').replace(/\D/g, ''), '0');
  return { pid, start, space, host: encodeURIComponent(hostname()) };
}

function refusal(folder: string, owner: Owner): string {
  const { space, host } = describe(process.pid);
  const file = join(folder, nameOf(owner));
  const since = statSync(file, { throwIfNoEntry: false })?.mtime.toLocaleString('sv-SE') ?? 'just now';
  if (owner.host !== host || owner.space !== space) {
    return `${folder} is being written by process ${owner.pid} of another machine or container (${owner.host}, since ${since}), as far as can be seen from here: if that has ended, remove ${file}`;
  }
  return `${folder} is being written by process ${owner.pid} (since ${since}): wait until it ends, or end it; if it is not a run, remove ${file}`;
}
