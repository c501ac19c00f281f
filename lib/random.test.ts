import { describe, expect, it } from 'vitest';
import { normals, permutation, threefry2x32, uniform } from './random.ts';

const mean = (values: ArrayLike<number>) => Array.from(values).reduce((sum, x) => sum + x, 0) / values.length;

function correlation(a: number[], b: number[]): number {
  const [ma, mb] = [mean(a), mean(b)];
  const cov = mean(a.map((x, i) => (x - ma) * (b[i] - mb)));
  return cov / Math.sqrt(mean(a.map((x) => (x - ma) ** 2)) * mean(b.map((x) => (x - mb) ** 2)));
}

describe('threefry2x32', () => {
  it.each([
    [
      [0, 0],
      [0, 0],
      [0x6b200159, 0x99ba4efe],
    ],
    [
      [0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x1cb996fc, 0xbb002be7],
    ],
    [
      [0x13198a2e, 0x03707344],
      [0x243f6a88, 0x85a308d3],
      [0xc4923a9c, 0x483df7a0],
    ],
  ] as [number, number][][])('gives the known answer of Random123 for key %j, counter %j', (key, counter, answer) => {
    expect(threefry2x32(key, counter)).toEqual(answer);
  });
});

describe('uniform', () => {
  it('depends on its arguments only', () => {
    const draw = uniform(7, 1, 2, 3);
    uniform(8, 1);
    expect(uniform(7, 1, 2, 3)).toBe(draw);
  });

  it('never changes from one version to the next, or runs could not be resumed', () => {
    const [a, b] = threefry2x32(threefry2x32([42, 0], [3, 0]), [0, 0x40000000]);
    expect(uniform(42, 3)).toBe(((a >>> 5) * 2 ** 26 + (b >>> 6)) / 2 ** 53);
  });

  it('draws differently for every tuple, order, length and sign', () => {
    const tuples = [[0], [0, 0], [0, 0, 0], [1], [1, 0], [0, 1], [-1], [0, -1], [2 ** 32], [0, 2 ** 32], [0, 2 ** 52]];
    const draws = tuples.map(([seed, ...counters]) => uniform(seed, ...counters));
    expect(new Set(draws).size).toBe(tuples.length);
  });

  it('refuses what is not an integer', () => {
    expect(() => uniform(0.5)).toThrow(RangeError);
    expect(() => uniform(0, Number.NaN)).toThrow(RangeError);
  });

  it.each([0, 1, 123456789])('is uniform (chi-square over 100 bins, seed %i)', (seed) => {
    const bins = new Array(100).fill(0);
    for (let i = 0; i < 100_000; i++) bins[Math.floor(uniform(seed, i) * 100)]++;
    const chi2 = bins.reduce((sum, count) => sum + (count - 1000) ** 2 / 1000, 0);
    // The 0.01 % and 99.99 % points of chi-square with 99 degrees of freedom.
    expect(chi2).toBeGreaterThan(53);
    expect(chi2).toBeLessThan(161);
  });

  it('has no correlation between neighbouring counters, neighbouring seeds, and tuples of different length', () => {
    const n = 20_000;
    const draws = (f: (i: number) => number) => Array.from({ length: n }, (_, i) => f(i));
    const x = draws((i) => uniform(0, i));
    const limit = 4 / Math.sqrt(n);
    for (const y of [
      draws((i) => uniform(0, i + 1)),
      draws((i) => uniform(1, i)),
      draws((i) => uniform(0, i, 0)),
      draws((i) => uniform(i)),
    ]) {
      expect(Math.abs(correlation(x, y))).toBeLessThan(limit);
    }
  });
});

describe('permutation', () => {
  it('holds every index once, and follows seed and counters', () => {
    const order = permutation(50, 3, 1);
    expect([...order].sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(permutation(50, 3, 1)).toEqual(order);
    expect(permutation(50, 3, 2)).not.toEqual(order);
    expect(permutation(0, 3)).toEqual([]);
  });

  it('gives the six orders of three equally often', () => {
    const counts = new Map<string, number>();
    for (let i = 0; i < 6000; i++) {
      const key = permutation(3, 0, i).join();
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
    expect(counts.size).toBe(6);
    for (const count of counts.values()) expect(Math.abs(count - 1000)).toBeLessThan(130);
  });
});

describe('normals', () => {
  it('has mean 0, variance 1 and the kurtosis of a normal, with no two equal', () => {
    const values = normals(50_001, 5);
    expect(Math.abs(mean(values))).toBeLessThan(0.02);
    expect(Math.abs(mean(values.map((x) => x ** 2)) - 1)).toBeLessThan(0.03);
    expect(Math.abs(mean(values.map((x) => x ** 4)) - 3)).toBeLessThan(0.2);
    expect(new Set(values).size).toBeGreaterThan(49_900);
  });

  it('begins alike whatever the length', () => {
    expect(normals(3, 5, 1)).toEqual(normals(10, 5, 1).slice(0, 3));
  });
});
