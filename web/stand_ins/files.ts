/**
 * In place of `node:fs` and `node:fs/promises` in a browser: files in memory, which were fetched or are written there. Folders
 * are there as long as something is in them. Only what lib/ calls on its way from a checkpoint to a model and back is here.
 */

const files = new Map<string, Uint8Array>();

/** `./models/tiny/`, `/models/tiny` and file:///models/tiny are models/tiny. */
const nameOf = (path: string | URL): string =>
  (typeof path === 'string' ? path : path.pathname).replace(/^(\.?\/)+/, '').replace(/\/+$/, '');

const bytesOf = (content: string | Uint8Array): Uint8Array =>
  typeof content === 'string' ? new TextEncoder().encode(content) : content.slice();

const below = (folder: string | URL): string[] => {
  return [...files.keys()].filter((name) => name.startsWith(`${nameOf(folder)}/`));
};

function missing(path: string | URL, syscall: string): Error {
  const message = `ENOENT: no such file or directory, ${syscall} '${nameOf(path)}'`;
  return Object.assign(new Error(message), { code: 'ENOENT', syscall });
}

function contentOf(path: string | URL, syscall: string): Buffer {
  const found = files.get(nameOf(path));
  if (!found) throw missing(path, syscall);
  return Buffer.from(found.buffer, found.byteOffset, found.byteLength);
}

// ─── node:fs ─────────────────────────────────────────────────────────────────────────────────────────────────────────

export const existsSync = (path: string | URL): boolean => files.has(nameOf(path)) || below(path).length > 0;
export const readFileSync = (path: string | URL): Buffer => contentOf(path, 'open');
export const writeFileSync = (path: string | URL, content: string | Uint8Array): void =>
  void files.set(nameOf(path), bytesOf(content));

export function statSync(path: string | URL) {
  const isFile = files.has(nameOf(path));
  if (!isFile && below(path).length === 0) throw missing(path, 'stat');
  return { size: files.get(nameOf(path))?.length ?? 0, isFile: () => isFile, isDirectory: () => !isFile };
}

export function readdirSync(path: string | URL): string[] {
  const prefix = `${nameOf(path)}/`;
  const names = below(path).map((name) => name.slice(prefix.length).split('/')[0]);
  if (names.length === 0) throw missing(path, 'scandir');
  return [...new Set(names)].sort(); // fetched in any order
}

export const mkdirSync = (): void => {};

/** Imported by what is bundled, and never called there. */
const absent = (name: string) => (): never => {
  throw new Error(`${name} is not there in a browser`);
};
export const constants = {};
export const [appendFileSync, closeSync, fsyncSync, openSync, renameSync, rmSync] = [
  'appendFileSync',
  'closeSync',
  'fsyncSync',
  'openSync',
  'renameSync',
  'rmSync',
].map(absent);

// ─── node:fs/promises ────────────────────────────────────────────────────────────────────────────────────────────────

export const mkdir = async (): Promise<void> => {};
export const readdir = async (path: string | URL): Promise<string[]> => readdirSync(path);
export const stat = async (path: string | URL) => statSync(path);
export const writeFile = async (path: string | URL, content: string | Uint8Array) => writeFileSync(path, content);

export async function readFile(path: string | URL, encoding?: 'utf8'): Promise<Buffer | string> {
  const content = contentOf(path, 'open');
  return encoding ? content.toString(encoding) : content;
}

export async function rename(from: string, to: string): Promise<void> {
  files.set(nameOf(to), contentOf(from, 'rename'));
  files.delete(nameOf(from));
}

export async function rm(path: string): Promise<void> {
  for (const name of [nameOf(path), ...below(path)]) files.delete(name);
}

/** @param flags - `w` writes one piece after the other, which are the file as soon as it is closed */
export async function open(path: string, flags: 'r' | 'w') {
  const content = flags === 'r' ? contentOf(path, 'open') : Buffer.alloc(0);
  const pieces: Uint8Array[] = [];
  return {
    stat: async () => ({ size: content.length }),
    read: async (buffer: Uint8Array, offset: number, length: number, position: number) => {
      const piece = content.subarray(position, position + length);
      buffer.set(piece, offset);
      return { bytesRead: piece.length };
    },
    writeFile: async (piece: Uint8Array) => void pieces.push(piece.slice()),
    sync: async () => {},
    close: async () => {
      if (flags === 'w') files.set(nameOf(path), Buffer.concat(pieces));
    },
  };
}
