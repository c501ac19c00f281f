import type * as tf from '@tensorflow/tfjs';
import { beforeAll, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { compareWithFormula, dot, range, row } from '../comparisons.ts';
import { linear } from './linear.ts';

beforeAll(useBackend);

test.each([
  [1, 1, 1],
  [3, 5, 7],
  [16, 17, 33],
])('linear, %i × %i → %i', (n, inputs, outputs) =>
  compareWithFormula(
    (x, w) => linear(x as tf.Tensor2D, w),
    (x, w) => range(n).flatMap((i) => range(outputs).map((o) => dot(row(x, i, inputs), row(w, o, inputs)))),
    [
      [n, inputs],
      [outputs, inputs],
    ],
  ),
);
