import * as tf from '@tensorflow/tfjs';
import type { WasmKernel } from '../on_wasm.ts';
import { sizeOf } from '../shapes.ts';
import { pieces } from '../thread_pool.ts';
import { registered, replace } from '../wasm_backend.ts';

/** `tf.concat`: the backend's own kernel walks through JavaScript for every block. */
export const concatOnWasm: WasmKernel = {
  kernelName: tf.Concat,
  register({ run, output }) {
    const original = registered(tf.Concat);
    replace(tf.Concat, (call) => {
      const parts = Object.values(call.inputs);
      const [{ shape, dtype }] = parts;
      const axis = tf.util.parseAxisParam(call.attrs.axis as number, shape)[0];
      if (dtype !== 'float32' && dtype !== 'int32') return original(call); // not four bytes an element
      const shapes = parts.map((part) => part.shape);
      tf.backend_util.assertParamsConsistent(shapes, axis);
      const joined = output(tf.backend_util.computeOutShape(shapes, axis), dtype);
      const [count, stride] = [sizeOf(shape.slice(0, axis)), sizeOf(joined.shape.slice(axis))];
      let first = 0;
      for (const x of parts) {
        const width = sizeOf(x.shape.slice(axis));
        run.placeBlocks({ x, y: joined, first, width, stride, step: width }, pieces(count, width));
        first += width;
      }
      return joined;
    });
  },
};
