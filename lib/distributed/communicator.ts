/** What ranks, the processes of one training run, say to each other. */
import { isMaximum } from '../statistics.ts';

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

/** What each rank says, in their order, on every rank: it is sent as JSON, in which numbers must be finite. */
export async function gather<T>({ rank, size, allReduceSum }: Communicator, own: T): Promise<T[]> {
  // Each rank has a place of its own in what is added up, a float for a byte; and two for its length, which may have more
  // digits than a float.
  const text = new TextEncoder().encode(
    JSON.stringify(own, (key, value) => {
      if (typeof value !== 'number' || Number.isFinite(value)) return value;
      throw new Error(`JSON has no ${value} (${key})`);
    }),
  );
  const lengths = new Float32Array(2 * size);
  lengths.set([Math.floor(text.length / 2 ** 20), text.length % 2 ** 20], 2 * rank);
  await allReduceSum(lengths);
  const places: { begin: number; end: number }[] = [];
  for (let r = 0, end = 0; r < size; r++) {
    const begin = end;
    end += lengths[2 * r] * 2 ** 20 + lengths[2 * r + 1];
    places.push({ begin, end });
  }
  const letters = new Float32Array(places[size - 1].end);
  letters.set(text, places[rank].begin);
  await allReduceSum(letters);
  const decode = (bytes: Float32Array) => new TextDecoder().decode(Uint8Array.from(bytes));
  return places.map(({ begin, end }) => JSON.parse(decode(letters.subarray(begin, end))));
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
 * This rank's own things in their places among those of all ranks: a list of the same length and order on each.
 * @param first - the place of the first of them
 */
export const amongAll = <T>(own: T[], { first, count }: { first: number; count: number }): (T | undefined)[] =>
  Array.from({ length: count }, (_, i) => own[i - first]);

/**
 * Puts numbers together by name over all ranks: by their sum, or those called `…_max`, which are at least 0, by their
 * maximum. A rank may lack some, or all: it has nothing to add.
 * @returns sums and maxima, on every rank
 */
export async function reduceByName(
  communicator: Communicator,
  own: Record<string, number>,
): Promise<Record<string, number>> {
  const { rank, size, allReduceSum } = communicator;
  const names = [...new Set((await gather(communicator, Object.keys(own))).flat())];
  // What is added up is one number; of what is not, each rank's has a place of its own.
  const places = names.flatMap((name) => Array.from({ length: isMaximum(name) ? size : 1 }, (_, r) => ({ name, r })));
  const isOwn = (name: string, r: number) => !isMaximum(name) || r === rank;
  const values = Float32Array.from(places, ({ name, r }) => (isOwn(name, r) ? (own[name] ?? 0) : 0));
  await allReduceSum(values);
  const all = (name: string) => [...values].filter((_, i) => places[i].name === name);
  return Object.fromEntries(names.map((name) => [name, Math.max(...all(name))]));
}
