import { describe, expect, it } from 'vitest';
import { agree, type Communicator, gather, reduceByName, shard, soloCommunicator } from './communicator.ts';

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

it('what each rank says is on every rank, whatever letters it has, and however long it is', async () => {
  const [a, b] = pair();
  const said = [{ text: 'naïve 🙂', numbers: [0.1, -1e-300] }, 'x'.repeat(3 * 2 ** 20 + 1)];
  const both = await Promise.all([gather<unknown>(a, said[0]), gather<unknown>(b, said[1])]);
  expect(both).toEqual([said, said]);
});

describe('reduceByName', () => {
  it('adds up what has the same name, and gives every rank all, also one that has nothing', async () => {
    const [a, b] = pair();
    const both = [reduceByName(a, { tokens: 3, 'a/b': 1 }), reduceByName(b, { tokens: 4, kl: 0.5 })];
    expect(await Promise.all(both)).toEqual(new Array(2).fill({ tokens: 7, 'a/b': 1, kl: 0.5 }));
    const one = [reduceByName(a, {}), reduceByName(b, { tokens: 4 })];
    expect(await Promise.all(one)).toEqual([{ tokens: 4 }, { tokens: 4 }]);
    expect(await Promise.all([reduceByName(a, {}), reduceByName(b, {})])).toEqual([{}, {}]);
  });

  it('takes the maximum of what is called so', async () => {
    const [a, b] = pair();
    const both = [reduceByName(a, { tokens: 3, 'x/y_max': 0.5 }), reduceByName(b, { tokens: 4, 'x/y_max': 2 })];
    expect(await Promise.all(both)).toEqual(new Array(2).fill({ tokens: 7, 'x/y_max': 2 }));
    expect(await Promise.all([reduceByName(a, { y_max: 1 }), reduceByName(b, {})])).toEqual([
      { y_max: 1 },
      { y_max: 1 },
    ]);
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
