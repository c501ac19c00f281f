import { beforeAll, expect, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, random, size } from '../comparisons.ts';
import { sumOfSquares } from './sum_of_squares.ts';

beforeAll(useBackend);

test('is the sum of squares, of any shape', async () => {
  for (const shape of [[1], [70_000], ...cases.map((key) => [size(1, key), 100 * size(2, key)])]) {
    const x = random(shape);
    const expected = Array.from(await x.data()).reduce((sum, value) => sum + value * value, 0);
    const sum = sumOfSquares(x);
    expect(sum.shape).toEqual([]);
    expect(Math.abs((await sum.data())[0] / expected - 1)).toBeLessThan(5e-6); // a row of 70,000 is one sum on wasm
  }
});
