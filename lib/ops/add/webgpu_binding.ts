import * as tf from '@tensorflow/tfjs';
import { replaceOnWebGpu, type WebGpuKernel } from '../on_webgpu.ts';
import { sizeOf } from '../shapes.ts';
import { pairs } from './webgpu_kernel.ts';

/** Whether the shape is the end of the other, so that its numbers repeat one after the other. */
const isEndOf = (shape: number[], other: number[]): boolean =>
  shape.length <= other.length && shape.every((size, i) => size === other[other.length - shape.length + i]);

const inPairs = (kernelName: string, operator: '+' | '*'): WebGpuKernel => {
  const kernel = pairs(kernelName, operator);
  return replaceOnWebGpu(kernelName, ({ a, b }, { run, output, isOnGpu }) => {
    const fits = isEndOf(a.shape, b.shape) || isEndOf(b.shape, a.shape);
    // Of two small tensors in this process's memory, the backend computes the sum there.
    if (!fits || a.dtype !== 'float32' || b.dtype !== 'float32' || !(isOnGpu(a) || isOnGpu(b))) return undefined;
    const c = output(a.shape.length > b.shape.length ? a.shape : b.shape);
    const [count, sizeA, sizeB] = [c, a, b].map(({ shape }) => sizeOf(shape));
    run(kernel, { a, b, c, count, sizeA, sizeB }, Math.ceil(count / kernel.threads));
    return c;
  });
};

/** `tf.add` and `tf.mul` of one shape, with one number, and with a row. */
export const addOnWebGpu = inPairs(tf.Add, '+');
export const multiplyOnWebGpu = inPairs(tf.Multiply, '*');
