/** What ranks, the processes of one training run, say to each other. */

/**
 * One rank's connection to all others. Every call but `close` is collective: each rank makes the same calls in the same
 * order, with arrays of the same length, and gets its answer when all have called.
 */
export type Communicator = {
  /** this process, from 0 */
  rank: number;
  /** how many processes there are */
  size: number;
  /** Replaces the values by their sums over all ranks, the same on each (`checkInSync` finds out if an MPI differs). */
  allReduceSum: (values: Float32Array) => Promise<void>;
  /** Replaces the bytes by those of rank 0. */
  broadcast: (bytes: Uint8Array) => Promise<void>;
  /** Returns when all ranks have come here. */
  barrier: () => Promise<void>;
  /** Leaves: the last call, once this rank's work is done. */
  close: () => Promise<void>;
};

/** A communicator as the one who starts ranks sees it. */
export type Rank = Communicator & {
  /** Ends all ranks, since this one cannot go on. Does not return. */
  fail: (message: string, exitCode: number) => Promise<void>;
};

/** The only rank of a run, which talks to nobody. */
export const soloCommunicator = (): Communicator => ({
  rank: 0,
  size: 1,
  allReduceSum: async () => {},
  broadcast: async () => {},
  barrier: async () => {},
  close: async () => {},
});

/**
 * What rank 0 computes, on every rank: it is sent as JSON (an `undefined` property is left out).
 * @param compute - called on rank 0 only
 */
export async function fromRankZero<T>({ rank, broadcast }: Communicator, compute: () => T | Promise<T>): Promise<T> {
  const value = rank === 0 ? await compute() : undefined;
  const bytes = new TextEncoder().encode(rank === 0 ? JSON.stringify(value ?? null) : '');
  const length = Uint32Array.of(bytes.length);
  await broadcast(new Uint8Array(length.buffer));
  const text = rank === 0 ? bytes : new Uint8Array(length[0]);
  await broadcast(text);
  return rank === 0 ? (value as T) : JSON.parse(new TextDecoder().decode(text));
}

/** Whether any rank says yes, on every rank. */
export async function agree({ allReduceSum }: Communicator, asked: boolean): Promise<boolean> {
  const votes = Float32Array.of(Number(asked));
  await allReduceSum(votes);
  return votes[0] > 0;
}

/** Which of `count` things a rank has, from `begin` to before `end`: as even as it gets, and rank 0 has one in any case. */
export function shard(
  { rank, size }: Pick<Communicator, 'rank' | 'size'>,
  count: number,
): { begin: number; end: number } {
  return { begin: Math.ceil((rank * count) / size), end: Math.ceil(((rank + 1) * count) / size) };
}

/**
 * A table of which every rank has some rows, on every rank: each fills in its own, and the sum is the whole.
 * @param own - this rank's rows, `options.width` numbers each, of which the first is number `options.first`
 * @returns all `options.count` rows
 */
export async function gatherRows(
  { allReduceSum }: Communicator,
  own: number[][],
  { first, count, width }: { first: number; count: number; width: number },
): Promise<number[][]> {
  const table = new Float32Array(count * width);
  table.set(own.flat(), first * width);
  await allReduceSum(table);
  return Array.from({ length: count }, (_, row) => [...table.subarray(row * width, (row + 1) * width)]);
}
