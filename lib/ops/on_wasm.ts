/**
 * Binds operations to their kernels in wasm. Both sides are declared once, elsewhere: what an operation takes and gives
 * where it is defined (`fusible`), what a kernel takes in its source, from which `npm run build` makes wasm_interface.ts.
 */
import type * as tf from '@tensorflow/tfjs';
import type { Kernel } from './fusible.ts';
import { sizeOf } from './shapes.ts';
import type { Pieces, Pool } from './thread_pool.ts';
import { register, type WasmBackend } from './wasm_backend.ts';
import { FUNCTIONS, RECORDS } from './wasm_interface.ts';

/** A tensor stands for the address of its first number; 0 is nowhere. */
type Address = tf.TensorInfo | number;
type Arguments<Types> = { [Name in keyof Types]: Types[Name] extends 'usize' ? Address : number };

/** Which items a kernel computes is the pool's affair. */
type Run<Name extends keyof typeof FUNCTIONS> = (
  args: Arguments<Omit<(typeof FUNCTIONS)[Name], 'begin' | 'end'>>,
  pieces: Pieces,
) => void;

/** What a binding works with. */
export type Wasm = {
  /** The functions of the kernels, called with arguments by name, by all threads. */
  run: { [Name in keyof typeof FUNCTIONS]: Run<Name> };
  /** Matrix products by our kernel, and by BLAS, as far as there is one. */
  matMul: { byWasm: Run<'matMul'> | undefined; byBlas: Run<'matMul'> | undefined };
  threads: number;
  /** A new tensor, which holds whatever was there before. */
  output(shape: number[], dtype?: tf.DataType): tf.TensorInfo;
  /** A new tensor of zeros. */
  zeros(shape: number[]): tf.TensorInfo;
  /** An input that the kernel has written over, as an output. */
  overwritten(input: tf.TensorInfo): tf.TensorInfo;
  /** The address of memory for the time of the call: room for so many floats, or these values. */
  scratch(content: number | Int32Array | Float64Array): number;
  /** The address of such records, one after the other, for the time of the call. */
  records<Name extends keyof typeof RECORDS>(name: Name, records: Arguments<(typeof RECORDS)[Name]>[]): number;
  /** Ends that time. */
  freeScratch(): void;
};

/** A kernel that the wasm backend does not have yet. */
export type WasmKernel = { kernelName: string; register(wasm: Wasm): void };

/**
 * The kernel of an operation.
 * @param compute - the operation's inputs and attributes → its outputs
 */
export function onWasm<Inputs extends tf.Tensor[], Attributes extends object[], Outputs extends tf.Tensor[]>(
  { kernelName }: Kernel<Inputs, Attributes, Outputs>,
  compute: (
    inputs: { [i in keyof Inputs]: tf.TensorInfo },
    wasm: Wasm,
    ...attributes: Attributes
  ) => { [i in keyof Outputs]: tf.TensorInfo },
): WasmKernel {
  // TensorFlow.js's list of kernels knows no types: these are what `kernelOf` passes on.
  const untyped = compute as unknown as (inputs: tf.TensorInfo[], wasm: Wasm, attributes: object) => tf.TensorInfo[];
  return {
    kernelName,
    register: (wasm) =>
      register(kernelName, ({ inputs, attrs }) => {
        try {
          return untyped(Object.values(inputs), wasm, attrs);
        } finally {
          wasm.freeScratch();
        }
      }),
  };
}

/** @param pool - runs what the module exports: arguments come in order */
export function createWasm(backend: WasmBackend, pool: Pool): Wasm {
  const { wasm } = backend;
  const taken: number[] = [];
  const numberOf = (x: Address) =>
    // Addresses of more than 2 GB come as negative numbers; a tensor without elements has none.
    typeof x === 'number' ? x : (backend.dataIdMap.get(x.dataId).memoryOffset ?? 0) >>> 0;
  const inOrder = (types: object) => {
    const names = Object.keys(types);
    return (args: Record<string, Address>) => names.map((name) => numberOf(args[name]));
  };
  const runOf = (name: keyof typeof FUNCTIONS, called: string = name) => {
    const { begin, end, ...own } = FUNCTIONS[name];
    const numbers = inOrder(own);
    return (args: Record<string, Address>, pieces: Pieces) => pool.run(called, numbers(args), pieces);
  };
  const run = Object.keys(FUNCTIONS).map((name) => [name, runOf(name as keyof typeof FUNCTIONS)]);
  const output: Wasm['output'] = (shape, dtype = 'float32') => backend.makeOutput(shape, dtype);
  const scratch: Wasm['scratch'] = (content) => {
    const bytes = typeof content === 'number' ? 4 * content : content.byteLength;
    const address = wasm._malloc(Math.max(16, bytes)) >>> 0;
    taken.push(address);
    if (typeof content !== 'number') {
      wasm.HEAPU8.set(new Uint8Array(content.buffer, content.byteOffset, bytes), address);
    }
    return address;
  };
  return {
    run: Object.fromEntries(run),
    matMul: {
      byWasm: pool.has('matMul') ? runOf('matMul') : undefined,
      byBlas: pool.has('matMulByBlas') ? runOf('matMul', 'matMulByBlas') : undefined,
    },
    threads: pool.threads,
    output,
    zeros(shape) {
      const tensor = output(shape);
      wasm.HEAPU8.fill(0, numberOf(tensor), numberOf(tensor) + 4 * sizeOf(shape));
      return tensor;
    },
    overwritten({ dataId, shape, dtype }) {
      backend.incRef(dataId);
      return { dataId, shape, dtype };
    },
    scratch,
    records: (name, records) => scratch(Int32Array.from(records.flatMap(inOrder(RECORDS[name])))),
    freeScratch() {
      for (const address of taken.splice(0)) wasm._free(address);
    },
  };
}
