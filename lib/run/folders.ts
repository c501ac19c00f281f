import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';

// What is being written or removed has a hidden name; only what is complete has its final name. Whenever the process is
// killed, mend() finds one of: X and .X.partial (X wins), .X.replaced without X (it becomes X again).
const partialOf = (path: string) => join(dirname(path), `.${basename(path)}.partial`);
const replacedOf = (path: string) => join(dirname(path), `.${basename(path)}.replaced`);

/** Replaces a file in one step, so that a reader sees the old text or the new one and never a part. */
export function writeFileAtomically(path: string, text: string): void {
  writeFileSync(partialOf(path), text);
  sync(partialOf(path));
  renameSync(partialOf(path), path);
  sync(dirname(path));
}

/**
 * Writes a folder that is complete as soon as it can be seen under its name, and replaces one that is there already.
 * @param path - the folder
 * @param write - writes the files into the folder it is given
 */
export async function writeFolderAtomically(path: string, write: (dir: string) => Promise<void>): Promise<void> {
  const partial = partialOf(path);
  rmSync(partial, { recursive: true, force: true });
  mkdirSync(partial, { recursive: true });
  await write(partial);
  for (const entry of readdirSync(partial, { recursive: true })) sync(join(partial, String(entry)));
  sync(partial);
  if (existsSync(path)) renameSync(path, replacedOf(path));
  renameSync(partial, path);
  sync(dirname(path));
  rmSync(replacedOf(path), { recursive: true, force: true });
}

/** Removes a folder such that it is never seen half empty under its name. */
export function removeFolder(path: string): void {
  rmSync(partialOf(path), { recursive: true, force: true });
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
