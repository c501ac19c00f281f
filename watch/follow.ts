/** Reads logs that are still being written. */
import { open, stat } from 'node:fs/promises';

const NEWLINE = 10;
/** Bytes that are read at once. */
const CHUNK = 2 ** 20;

/**
 * Follows a file of lines. Each call of what is returned reads on from where the last one has ended, and says whether there
 * was anything new; a last line that is not complete yet is left for the next call.
 * @param onLine - gets the bytes of each line, which it must not keep, and where in the file it begins
 * @param onRestart - the file has become another one, or is gone: what was read of it counts no more
 */
export function followLines(
  file: string,
  onLine: (line: Buffer, begin: number) => void,
  onRestart: () => void,
): () => Promise<boolean> {
  let [offset, inode] = [0, 0];
  let buffer = Buffer.allocUnsafe(CHUNK);

  return async () => {
    const found = await stat(file).catch(() => undefined);
    const isGone = offset > 0 && (!found || found.ino !== inode || found.size < offset);
    if (isGone) {
      onRestart();
      offset = 0;
    }
    inode = found?.ino ?? 0;
    if (!found || found.size === offset) return isGone;
    const begun = offset;
    const handle = await open(file, 'r');
    try {
      for (;;) {
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset);
        const end = buffer.subarray(0, bytesRead).lastIndexOf(NEWLINE) + 1;
        if (end === 0) {
          if (bytesRead < buffer.length) break; // no complete line is left
          buffer = Buffer.allocUnsafe(2 * buffer.length);
          continue;
        }
        for (let begin = 0; begin < end; ) {
          const stop = buffer.indexOf(NEWLINE, begin);
          onLine(buffer.subarray(begin, stop), offset + begin);
          begin = stop + 1;
        }
        offset += end;
      }
    } finally {
      await handle.close();
    }
    return isGone || offset > begun;
  };
}

/** The bytes of a file from `begin` to `end`, as text. */
export async function readPart(file: string, begin: number, end: number): Promise<string> {
  const handle = await open(file, 'r');
  try {
    const buffer = Buffer.allocUnsafe(end - begin);
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, begin);
    return buffer.toString('utf8', 0, bytesRead);
  } finally {
    await handle.close();
  }
}
