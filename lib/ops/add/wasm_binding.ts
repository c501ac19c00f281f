import * as tf from '@tensorflow/tfjs';
import type { WasmKernel } from '../on_wasm.ts';
import { sizeOf } from '../shapes.ts';
import { pieces } from '../thread_pool.ts';
import { registered, replace } from '../wasm_backend.ts';

/** `tf.add` of two tensors of one shape: the backend's own kernel has one thread. */
export const addOnWasm: WasmKernel = {
  kernelName: tf.Add,
  register({ run, output }) {
    const original = registered(tf.Add);
    replace(tf.Add, (call) => {
      const { a, b } = call.inputs;
      const same = a.shape.length === b.shape.length && a.shape.every((size, i) => size === b.shape[i]);
      if (!same || a.dtype !== 'float32' || b.dtype !== 'float32') return original(call);
      const y = output(a.shape);
      run.add({ a, b, y }, pieces(sizeOf(a.shape), 1));
      return y;
    });
  },
};
