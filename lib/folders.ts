import {
  appendFileSync,
  closeSync,
  constants,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import * as async from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { UserError } from './errors.ts';

/** Names the file in what the system refuses: of a full disk it says only that it is full. */
function cannotWrite(path: string, error: unknown): unknown {
  const { syscall, message } = error as NodeJS.ErrnoException;
  if (error instanceof UserError || syscall === undefined) return error;
  return new UserError(`cannot write ${path} (${message.split(',')[0]})`);
}

/** Writes a file. */
export const writeFile = (path: string, content: string | Uint8Array): Promise<void> =>
  async.writeFile(path, content).catch((error) => {
    throw cannotWrite(path, error);
  });

/** Adds to a file, in one write: a process that is killed tears the last line at most. `create`: where there is none. */
export function appendToFile(path: string, content: string | Uint8Array, { create = true } = {}): void {
  const { O_APPEND, O_WRONLY, O_CREAT } = constants;
  try {
    const file = openSync(path, O_APPEND | O_WRONLY | (create ? O_CREAT : 0));
    try {
      appendFileSync(file, content);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw cannotWrite(path, error);
  }
}

/** Makes a folder unless it is there. Not those above it: if one of them is gone, that is not to go unnoticed. */
export function ensureFolder(path: string): void {
  try {
    if (!existsSync(path)) mkdirSync(path);
  } catch (error) {
    throw cannotWrite(path, error);
  }
}

// What is being written or removed has a hidden name; only what is complete has its final name. Whenever the process is
// killed, mend() finds one of: X and .X.partial (X wins), .X.replaced without X (it becomes X again).
const partialOf = (path: string) => join(dirname(path), `.${basename(path)}.partial`);
/** The name of a folder while another one takes its place. */
export const replacedOf = (path: string) => join(dirname(path), `.${basename(path)}.replaced`);

/** Replaces a file in one step, so that a reader sees the old text or the new one and never a part. */
export function writeFileAtomically(path: string, text: string): void {
  try {
    writeFileSync(partialOf(path), text);
    sync(partialOf(path));
    renameSync(partialOf(path), path);
    sync(dirname(path));
  } catch (error) {
    throw cannotWrite(path, error);
  }
}

/**
 * Writes a folder that is complete as soon as it can be seen under its name, and replaces one that is there already.
 * @param path - the folder
 * @param write - writes the files into the folder it is given
 */
export async function writeFolderAtomically(path: string, write: (dir: string) => Promise<void>): Promise<void> {
  const partial = partialOf(path);
  try {
    rmSync(partial, { recursive: true, force: true });
    mkdirSync(partial);
    await write(partial);
    for (const entry of readdirSync(partial, { recursive: true })) sync(join(partial, String(entry)));
    sync(partial);
    if (existsSync(path)) renameSync(path, replacedOf(path));
    renameSync(partial, path);
    sync(dirname(path));
    rmSync(replacedOf(path), { recursive: true, force: true });
  } catch (error) {
    throw cannotWrite((error as NodeJS.ErrnoException).path ?? path, error);
  }
}

/** Removes a folder such that it is never seen half empty under its name. */
export function removeFolder(path: string): void {
  rmSync(partialOf(path), { recursive: true, force: true });
  if (!existsSync(path)) return; // somebody else has done it
  renameSync(path, partialOf(path));
  rmSync(partialOf(path), { recursive: true });
}

/** Puts in order what a killed process has left in a folder. */
export function mend(folder: string): void {
  for (const name of readdirSync(folder)) {
    const [, original, state] = /^\.(.+)\.(partial|replaced)$/.exec(name) ?? [];
    if (state === 'replaced' && !existsSync(join(folder, original))) {
      renameSync(join(folder, name), join(folder, original));
    } else if (state !== undefined) {
      rmSync(join(folder, name), { recursive: true });
    }
  }
}

/** Waits until a file, or the list of files of a folder, is on the disk. */
export function sync(path: string): void {
  if (process.platform === 'win32') return; // there, what is open for reading cannot be flushed
  const file = openSync(path, 'r');
  try {
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}
