/** What Node has everywhere and a browser has not. No version of Node: TensorFlow.js would take the tab for one. */
import { Buffer } from './buffer.ts';
import { setImmediate } from './node.ts';

Object.assign(globalThis, {
  Buffer,
  process: { env: {}, versions: {}, listeners: () => [], off: () => {} },
  setImmediate: (act: () => void) => void setImmediate().then(act),
});
