/**
 * For tests of operations: against their formula in plain numbers (float64), and of kernels against the plain definition
 * that they replace, over random shapes.
 */
import * as tf from '@tensorflow/tfjs';
import { expect } from 'vitest';
import { normals, uniform } from '../random.ts';
import { sum } from '../statistics.ts';
import type { WasmBackend } from './wasm_backend.ts';
import { WASM_KERNELS } from './wasm_kernels.ts';
import { WEBGPU_KERNELS } from './webgpu_kernels.ts';

/** Tolerances for rounding: of one side against the formula; of two sums of up to 1,240 numbers against each other. */
const [TOLERANCE, TOLERANCE_OF_BOTH] = [1e-5, 3e-5];

let draws = 0;
export const random = (shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 7, draws++), shape);

export const range = (n: number) => Array.from({ length: n }, (_, i) => i);
export const dot = (a: number[], b: number[]) => sum(a.map((x, i) => x * b[i]));
/** Row i of a matrix. */
export const row = (x: number[], i: number, width: number) => x.slice(i * width, (i + 1) * width);

/**
 * Compares `op` with `formula` (flat arrays in, flat array out) at random inputs of these shapes: its value with the formula's,
 * its hand-written gradient with central differences of the formula, so that the tolerance is that of float32 alone.
 */
export async function compareWithFormula(
  op: (...inputs: tf.Tensor[]) => tf.Tensor,
  formula: (...inputs: number[][]) => number[],
  shapes: number[][],
): Promise<void> {
  const inputs = shapes.map(random);
  const value = op(...inputs);
  const dy = random(value.shape);
  const gradients = tf.grads(op)(inputs, dy);
  const numbers = await Promise.all(inputs.map(async (input) => Array.from(await input.data())));
  expectClose(await value.data(), formula(...numbers));
  const weights = await dy.data();
  const loss = () => formula(...numbers).reduce((sum, y, i) => sum + y * weights[i], 0);
  const step = 1e-5;
  for (const [i, input] of numbers.entries()) {
    const differences = input.map((x, j) => {
      const at = (y: number) => {
        input[j] = y;
        return loss();
      };
      const slope = (at(x + step) - at(x - step)) / (2 * step);
      input[j] = x;
      return slope;
    });
    expect(gradients[i].shape).toEqual(shapes[i]);
    expectClose(await gradients[i].data(), differences);
  }
  tf.dispose([inputs, value, dy, gradients]);
}

export function expectClose(actual: ArrayLike<number>, expected: number[]): void {
  expect(actual.length).toBe(expected.length);
  const worst = Math.max(...expected.map((x, i) => Math.abs(actual[i] - x) / Math.max(1, Math.abs(x))));
  expect(worst).toBeLessThan(TOLERANCE);
}

const BACKEND = process.env.TFJS_BACKEND ?? 'wasm';

/** Whether the tests run on a backend that has kernels: without, there is nothing to compare. */
export const WITH_KERNELS = ['wasm', 'webgpu'].includes(BACKEND) && process.env.TFJS_KERNELS !== 'off';

/** Forty cases, for shapes that are drawn from their number: fewer where a GPU in software takes long to compile each. */
export const cases = range(BACKEND === 'webgpu' ? 12 : 40);
/** A size from 1 to 40, half of them among those that fill no, or exactly, whole fours. */
export const size = (...key: number[]) =>
  uniform(5, ...key) < 0.5
    ? [1, 3, 4, 5, 16, 17][Math.floor(6 * uniform(6, ...key))]
    : 1 + Math.floor(40 * uniform(7, ...key));
/** Rows, of which the first two cases have none (on webgpu, whose sums cannot: one) and one. */
export const rowsOf = (key: number) => (key < 2 ? Math.max(key, BACKEND === 'webgpu' ? 1 : 0) : size(0, key));

/** Calls f where the kernels are not registered. */
export function plainly<T>(f: () => T): T {
  const own: { kernelName: string }[] = BACKEND === 'webgpu' ? WEBGPU_KERNELS : WASM_KERNELS;
  const kernels = own.map(({ kernelName }) => {
    const kernel = tf.getKernel(kernelName, BACKEND);
    expect(kernel, `${kernelName}: run \`npm run build\``).toBeDefined();
    return kernel;
  });
  for (const { kernelName } of kernels) tf.unregisterKernel(kernelName, BACKEND);
  try {
    return f();
  } finally {
    for (const kernel of kernels) tf.registerKernel(kernel);
  }
}

/** Value and gradients of an operation, with kernels and without; nothing is left behind. */
export async function compareWithPlain(op: (...inputs: tf.Tensor[]) => tf.Tensor, inputs: tf.Tensor[]): Promise<void> {
  const before = [tf.memory().numTensors, blocksTaken()];
  const value = op(...inputs);
  const dy = random(value.shape);
  const all = () => [op(...inputs), ...tf.grads(op)(inputs, dy)];
  const [actual, expected] = [all(), plainly(all)];
  await expectSame(actual, expected);
  tf.dispose([value, dy, actual, expected]);
  expect([tf.memory().numTensors, blocksTaken()]).toEqual(before);
  tf.dispose(inputs);
}

/** Largest difference, relative to the largest number, or to 1, which is the size of the inputs. */
export async function expectSame(actual: tf.Tensor[], expected: tf.Tensor[]): Promise<void> {
  for (const [i, x] of actual.entries()) {
    expect(x.shape).toEqual(expected[i].shape);
    const [a, b] = [await x.data(), await expected[i].data()];
    const scale = Math.max(1, ...b.map(Math.abs));
    a.forEach((value, j) => void expect(Math.abs(value - b[j]) / scale).toBeLessThan(TOLERANCE_OF_BOTH));
  }
}

let blocks: number | undefined;

/** Blocks of the backend's memory that are taken, on wasm since the first call. */
function blocksTaken(): number {
  if (BACKEND === 'webgpu') return tf.memory().numDataBuffers;
  if (blocks === undefined) {
    blocks = 0;
    const { wasm } = tf.backend() as WasmBackend;
    const { _malloc: allocate, _free: free } = wasm;
    wasm._malloc = (bytes) => {
      blocks!++;
      return allocate(bytes);
    };
    wasm._free = (address) => {
      blocks!--;
      free(address);
    };
  }
  return blocks;
}
