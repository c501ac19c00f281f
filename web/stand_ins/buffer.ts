/** In place of `node:buffer` in a browser. */
import { Buffer } from 'buffer/';

export { Buffer };

/** As long as a text can be in V8. */
export const constants = { MAX_STRING_LENGTH: 2 ** 29 - 24 };

export function isUtf8(bytes: Uint8Array): boolean {
  try {
    new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    return true;
  } catch {
    return false;
  }
}
