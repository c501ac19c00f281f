import { describe, expect, it } from 'vitest';
import { agree, type Communicator, gatherRows, shard, soloCommunicator } from './communicator.ts';

describe('shard', () => {
  it.each([
    [5, 2, [3, 2]],
    [8, 3, [3, 3, 2]],
    [2, 4, [1, 0, 1, 0]],
  ])('%d prompts over %d ranks: %j, without gap or overlap', (count, size, sizes) => {
    const shards = Array.from({ length: size }, (_, rank) => shard({ rank, size }, count));
    expect(shards.map(({ begin, end }) => end - begin)).toEqual(sizes);
    expect(shards.map(({ end }) => end)).toEqual([...shards.slice(1).map(({ begin }) => begin), count]);
  });
});

/** Two ranks of this process, whose sums wait for each other. */
function pair(): Communicator[] {
  const calls: { values: Float32Array; done: () => void }[] = [];
  const allReduceSum = (values: Float32Array) =>
    new Promise<void>((done) => {
      calls.push({ values, done });
      if (calls.length < 2) return;
      const [a, b] = calls.splice(0);
      const sum = a.values.map((value, i) => value + b.values[i]);
      for (const call of [a, b]) {
        call.values.set(sum);
        call.done();
      }
    });
  return [0, 1].map((rank) => ({ ...soloCommunicator(), rank, size: 2, allReduceSum }));
}

describe('gatherRows', () => {
  it('gives every rank the rows of all, also where one has none', async () => {
    const [a, b] = pair();
    const place = { count: 3, width: 2 };
    const whole = [
      [1, 2],
      [3, 4],
      [5, 6],
    ];
    const parts = [
      gatherRows(a, whole.slice(0, 2), { ...place, first: 0 }),
      gatherRows(b, [[5, 6]], { ...place, first: 2 }),
    ];
    expect(await Promise.all(parts)).toEqual([whole, whole]);
    const all = [gatherRows(a, whole, { ...place, first: 0 }), gatherRows(b, [], { ...place, first: 3 })];
    expect(await Promise.all(all)).toEqual([whole, whole]);
  });
});

describe('agree', () => {
  it.each([
    [false, false],
    [false, true],
    [true, true],
  ])('%s and %s', async (one, other) => {
    const [a, b] = pair();
    const expected = one || other;
    expect(await Promise.all([agree(a, one), agree(b, other)])).toEqual([expected, expected]);
  });
});
