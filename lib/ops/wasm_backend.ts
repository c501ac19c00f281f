/** TensorFlow.js's wasm backend as its kernels see it, which its own types hide, and its list of kernels. */
import * as tf from '@tensorflow/tfjs';

export type WasmBackend = tf.KernelBackend & {
  wasm: {
    HEAPU8: Uint8Array;
    _malloc(bytes: number): number;
    _free(address: number): void;
    /** In the build with threads, and in the one without. */
    wasmMemory?: object;
    asm: { memory?: object };
  };
  dataIdMap: { get(dataId: object): { memoryOffset: number | null } };
  makeOutput(shape: number[], dtype: tf.DataType): tf.TensorInfo;
  incRef(dataId: object): void;
  typedArrayFromHeap(tensor: tf.TensorInfo): Float32Array | Int32Array;
};

type Inputs = Record<string, tf.TensorInfo>;
type Attributes = Record<string, unknown>;
type Kernel<Output = tf.TensorInfo> = (args: { inputs: Inputs; backend: WasmBackend; attrs: Attributes }) => Output;

/** The kernel that is registered for the wasm backend under this name. */
export const registered = (name: string): Kernel => tf.getKernel(name, 'wasm').kernelFunc as unknown as Kernel;

/** Adds a kernel to the wasm backend. */
export function register(kernelName: string, kernelFunc: Kernel<tf.TensorInfo | tf.TensorInfo[]>): void {
  tf.registerKernel({ kernelName, backendName: 'wasm', kernelFunc: kernelFunc as unknown as tf.KernelFunc });
}

/** Puts a kernel in the place of the backend's own. */
export function replace(kernelName: string, kernelFunc: Kernel): void {
  tf.unregisterKernel(kernelName, 'wasm');
  register(kernelName, kernelFunc);
}
