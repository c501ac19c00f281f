import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { permutation } from '../../random.ts';
import {
  cases,
  compareWithFormula,
  compareWithPlain,
  random,
  range,
  row,
  rowsOf,
  size,
  WITH_KERNELS,
} from '../comparisons.ts';
import { moveRows } from './move_rows.ts';

beforeAll(useBackend);

describe('moveRows is its formula, and so is its gradient', () => {
  test.each([
    ['a permutation', { rows: 3, width: 5, index: [2, 0, 1] }],
    ['holes in the result', { rows: 2, width: 3, index: [2, 1, 2, 0, 2] }],
    ['a row that goes nowhere', { rows: 3, width: 1, index: [2, 0] }],
    ['both', { rows: 3, width: 4, index: [3, 2, 3, 0] }],
    ['one row', { rows: 1, width: 1, index: [0] }],
  ])('%s', (_, { rows, width, index }) => {
    const inverse = range(rows).map((i) => (index.includes(i) ? index.indexOf(i) : index.length));
    const rowIndex = (ids: number[], end: number) => ({ rows: tf.tensor1d(ids, 'int32'), holes: ids.includes(end) });
    return compareWithFormula(
      (x) => moveRows(x as tf.Tensor2D, rowIndex(index, rows), rowIndex(inverse, index.length)),
      (x) => index.flatMap((from) => (from === rows ? new Array(width).fill(0) : row(x, from, width))),
      [[rows, width]],
    );
  });
});

test.skipIf(!WITH_KERNELS)('kernel and plain definition agree', async () => {
  for (const key of cases) {
    const [from, holes] = [rowsOf(key), key % 3 === 0 ? 2 : 0];
    const order = permutation(from + holes, 8, key);
    const index = {
      rows: tf.tensor1d(
        Int32Array.from(order, (row) => Math.min(row, from)),
        'int32',
      ),
      holes: holes > 0,
    };
    const inverse = Int32Array.from({ length: from }, (_, row) => order.indexOf(row));
    const back = { rows: tf.tensor1d(inverse, 'int32'), holes: false };
    await compareWithPlain((x) => moveRows(x as tf.Tensor2D, index, back), [random([from, size(1, key)])]);
  }
});
