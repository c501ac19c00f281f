/** In place of Node's other modules in a browser: as much of them as lib/ uses there. */
import isDeepEqual from 'fast-deep-equal';

/** Browsers' own, which Node's types do not have. */
type BrowserWorker = {
  postMessage(message: unknown): void;
  addEventListener(type: string, hear: (event: { data?: unknown; message?: string }) => void, options: object): void;
  terminate(): void;
};
type Port = { onmessage: () => void; postMessage(message: unknown): void };
const browser = globalThis as unknown as {
  Worker: new (url: string, options: object) => BrowserWorker;
  MessageChannel: new () => { port1: Port; port2: Port };
};

// node:timers/promises. Timers would wait 4 ms each time, and a whole second in a tab that nobody looks at.
const { port1, port2 } = new browser.MessageChannel();
const waiting: (() => void)[] = [];
port1.onmessage = () => waiting.shift()?.();
export const setImmediate = (): Promise<void> =>
  new Promise((resolve) => {
    waiting.push(resolve);
    port2.postMessage(null);
  });

export const setTimeout = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => globalThis.setTimeout(resolve, milliseconds));

// node:util
export const isDeepStrictEqual = (a: unknown, b: unknown): boolean => isDeepEqual(a, b);

// node:vm. Templates are those of the bundled model, so that none has to be stopped.
export const createContext = (): Record<string, unknown> => ({});
export class Script {
  runInContext(context: { work: () => unknown }): unknown {
    return context.work();
  }
}

// node:v8
export const setFlagsFromString = (): void => {};

/** node:module. The module with workers is the browser itself, whose `Worker` TensorFlow.js's loader takes. */
export const createRequire = () => () => globalThis;

/** node:worker_threads. The one kind of worker that lib/ starts is lib/ops/thread.ts, which `build.ts` calls thread.js. */
export class Worker {
  readonly #worker: BrowserWorker;
  constructor(_: URL, { workerData }: { workerData: unknown }) {
    this.#worker = new browser.Worker('thread.js', { type: 'module' });
    this.#worker.postMessage(workerData);
  }
  once(event: 'message' | 'error' | 'exit', hear: (value: unknown) => void): void {
    const told = event === 'exit' ? 'error' : event;
    const values = { message: 'data', error: 'message' } as const;
    const hearEvent = (it: { data?: unknown; message?: string }) =>
      hear(event === 'exit' ? 1 : event === 'error' ? { message: it.message } : it[values.message]);
    this.#worker.addEventListener(told, hearEvent, { once: true });
  }
  unref(): void {}
  terminate(): void {
    this.#worker.terminate();
  }
}

/** node:events */
export const once = (emitter: Worker, event: 'message' | 'exit'): Promise<unknown> =>
  new Promise((resolve) => emitter.once(event, resolve));
