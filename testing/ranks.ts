/**
 * Stands in for lib/cli/ranks.ts, for tests in whose process all ranks run, taking turns. Beside testing/mains.ts:
 *
 *   vi.mock('../lib/cli/ranks.ts', () => import('../testing/ranks.ts'));
 */
import type { Communicator } from '../lib/distributed/communicator.ts';
import { runMain } from './mains.ts';

export function runRanks(
  url: string,
  main: (communicator: Communicator) => Promise<void>,
  nproc: () => number | Promise<number>,
): void {
  runMain(url, async () => void (await Promise.all(communicators(await nproc()).map(main))));
}

/** Communicators of so many ranks: a call is answered when all have made theirs. */
function communicators(size: number): Communicator[] {
  type Values = Float32Array | Uint8Array;
  let calls: { values: Values; answer: () => void }[] = [];
  const call = (rank: number, values: Values, combine: (all: Values[]) => Values) =>
    new Promise<void>((answer) => {
      calls[rank] = { values, answer };
      if (Object.keys(calls).length < size) return;
      const all = calls;
      calls = [];
      const result = combine(all.map(({ values }) => values)).slice();
      for (const { values, answer } of all) {
        values.set(result);
        answer();
      }
    });
  // In the order of the ranks: floating-point sums depend on it.
  const sum = ([first, ...others]: Values[]) => first.map((value, i) => others.reduce((a, b) => a + b[i], value));
  return Array.from({ length: size }, (_, rank) => ({
    rank,
    size,
    allReduceSum: (values) => call(rank, values, sum),
    broadcast: (bytes) => call(rank, bytes, ([first]) => first),
    barrier: () => call(rank, new Uint8Array(), ([first]) => first),
    close: async () => {},
  }));
}
