/**
 * What the wasm backend of TensorFlow.js lacks for training: matrix products with transposed operands on a fast path
 * (its own are about ten times slower than untransposed ones), copies that copy nothing, and the gradient of `gather`.
 */
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { lastTwo, sizeOf } from '../ops/shapes.ts';
import { register, registered, replace, type WasmBackend } from '../ops/wasm_backend.ts';

/** Replaces kernels of the wasm backend. Call once, before the first operation. */
export function patchWasmBackend(): void {
  refuseFailedAllocations((tf.backend() as WasmBackend).wasm);
  replaceMatMul();
  // A copy is another reference to the same data, as in Reshape: every tensor saved for a gradient is such a copy.
  replace('Identity', ({ inputs: { x }, backend }) => {
    backend.incRef(x.dataId);
    return { dataId: x.dataId, shape: x.shape, dtype: x.dtype };
  });
  // A sum of nothing is zero: the backend would leave what was there.
  const sum = registered('Sum');
  replace('Sum', (call) => {
    const out = sum(call);
    if (sizeOf(call.inputs.x.shape) === 0) call.backend.typedArrayFromHeap(out).fill(0);
    return out;
  });
  replaceGather();
}

/** Transposed operands are transposed first: the backend has a fast path for others only. */
function replaceMatMul(): void {
  const original = registered('BatchMatMul');
  const transpose = registered('Transpose');
  replace('BatchMatMul', ({ inputs: { a, b }, backend, attrs }) => {
    const { transposeA, transposeB } = attrs as { transposeA: boolean; transposeB: boolean };
    const [m, inner] = lastTwo(a.shape, transposeA);
    const outer = a.shape.slice(0, -2);
    if (inner === 0 && outer.join() === b.shape.slice(0, -2).join()) {
      const out = backend.makeOutput([...outer, m, lastTwo(b.shape, transposeB)[1]], 'float32');
      backend.typedArrayFromHeap(out).fill(0); // a sum of nothing: the backend would leave what was there
      return out;
    }
    const flip = (x: tf.TensorInfo) => {
      const perm = x.shape.map((_, axis) => axis);
      perm.push(...perm.splice(-2, 1));
      return transpose({ inputs: { x }, backend, attrs: { perm } });
    };
    const flipped = [...(transposeA ? [flip(a)] : []), ...(transposeB ? [flip(b)] : [])];
    const untransposed = { a: transposeA ? flipped[0] : a, b: transposeB ? flipped.at(-1)! : b };
    const out = original({ inputs: untransposed, backend, attrs: { transposeA: false, transposeB: false } });
    for (const { dataId } of flipped) backend.disposeData(dataId);
    return out;
  });
}

/** Gathers rows, and adds the gradient of that. */
function replaceGather(): void {
  // Rows gathered along the first axis are copied whole: the backend's own kernel walks every element's coordinates.
  const gather = registered('GatherV2');
  replace('GatherV2', (args) => {
    const { inputs, backend, attrs } = args;
    const { x, indices } = inputs;
    if (attrs.axis !== 0 || attrs.batchDims) return gather(args);
    const out = backend.makeOutput([...indices.shape, ...x.shape.slice(1)], x.dtype);
    const [from, ids, to] = [x, indices, out].map((tensor) => backend.typedArrayFromHeap(tensor));
    const width = sizeOf(x.shape.slice(1));
    const outside = ids.find((id) => id < 0 || id >= x.shape[0]);
    if (outside !== undefined) throw new RangeError(`gather: index ${outside} is outside 0 … ${x.shape[0] - 1}`);
    for (let i = 0; i < ids.length; i++) {
      for (let j = 0, source = ids[i] * width, target = i * width; j < width; j++) to[target + j] = from[source + j];
    }
    return out;
  });

  // The gradient of gather: row i of x is added to row segmentIds[i] of the output.
  register('UnsortedSegmentSum', ({ inputs, backend, attrs }) => {
    const { x, segmentIds } = inputs;
    const out = backend.makeOutput([attrs.numSegments as number, ...x.shape.slice(1)], x.dtype);
    const [from, ids, to] = [x, segmentIds, out].map((tensor) => backend.typedArrayFromHeap(tensor));
    const width = sizeOf(x.shape.slice(1));
    to.fill(0);
    for (let i = 0; i < ids.length; i++) {
      for (let j = 0, source = i * width, target = ids[i] * width; j < width; j++) to[target + j] += from[source + j];
    }
    return out;
  });
}

/**
 * The backend does not look at what it is given when no memory is left (address 0, or a block that reaches beyond the
 * end of the address space), and would write over its own data.
 */
function refuseFailedAllocations(wasm: WasmBackend['wasm']): void {
  tf.zeros([1]).dispose(); // the first call replaces _malloc itself
  const allocate = wasm._malloc;
  wasm._malloc = (bytes) => {
    const address = allocate(bytes);
    const end = (address >>> 0) + bytes;
    if (bytes === 0 || (address !== 0 && end <= wasm.HEAPU8.length)) return address;
    throw new UserError(
      `out of memory: the wasm backend can hold 4 GB, and ${(bytes / 2 ** 20).toFixed(0)} MB more were needed: lower --micro-batch-tokens or --batch-size, pass --gradient-checkpointing or --lora-rank 16, take a smaller model, or pass --backend tensorflow, which has no such limit`,
    );
  };
}
