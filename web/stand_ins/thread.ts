/** In place of `node:worker_threads` inside of one of its workers: the data that it is given comes as the first message. */
type Scope = { onmessage: unknown; postMessage(message: unknown): void };
const scope = globalThis as unknown as Scope;

export const workerData: unknown = await new Promise((resolve) => {
  scope.onmessage = ({ data }: { data: unknown }) => resolve(data);
});
export const parentPort = { postMessage: (message: unknown) => scope.postMessage(message) };

export { Worker } from './node.ts'; // which none of them starts
