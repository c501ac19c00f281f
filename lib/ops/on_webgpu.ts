/**
 * Binds operations to their kernels in WGSL. What an operation takes and gives is declared where it is defined (`fusible`),
 * what a kernel takes beside its source. A call costs microseconds: pipelines and bind groups are made once and found again,
 * and all numbers that calls come with travel to the GPU in one piece when their commands do.
 */
import * as tf from '@tensorflow/tfjs';
import type { Kernel } from './fusible.ts';
import { sizeOf } from './shapes.ts';
import { type BindGroup, type GpuBuffer, numberOf, USAGE, type WebGpuBackend } from './webgpu_backend.ts';
import { type Arguments, type Compiled, compile, MOST_DATA, type Scalar, type Wgsl, wgsl } from './wgsl.ts';

/** What a binding works with. */
export type WebGpu = {
  /** Lets so many workgroups run a kernel. */
  run<K extends Wgsl>(kernel: K, args: Arguments<K>, groups: number): void;
  /**
   * Makes calls that come again and again. Where they were made before for the same tensors and the same `key`, they are recorded,
   * and are made as they were then, but for what changes.
   * @param key - names all else that the calls depend on: each number, each size, and what is there at all
   * @param changes - numbers and lists (of the same length as before) that are new each time, in every kernel that has one of that
   *   name
   * @param calls - nothing but calls of `run`, for these tensors and scratch
   */
  repeat(key: string, tensors: tf.TensorInfo[], changes: Changes, calls: () => void): void;
  /** A new tensor, which holds whatever was there before. */
  output(shape: number[], dtype?: tf.DataType): tf.TensorInfo;
  /** The same for the time of the call. */
  scratch(shape: number[]): tf.TensorInfo;
  /** Ends that time. */
  freeScratch(): void;
  /** An input that the kernel has written over, as an output. */
  overwritten(input: tf.TensorInfo): tf.TensorInfo;
  /** An input that the kernel is to write over, as an output; a copy of it, where others hold its memory, too. */
  writable(input: tf.TensorInfo): tf.TensorInfo;
  /** Whether a tensor has memory on the GPU: one that this process has made from numbers gets it when it is first used. */
  isOnGpu(input: tf.TensorInfo): boolean;
};

/** Numbers and lists, by the names that kernels have for them. */
type Changes = Record<string, number | ArrayLike<number>>;

/**
 * What there was to do so far: our own calls, those of them that were recorded before, the bind groups made for the others, and
 * the times that commands were submitted.
 */
export const counters = { dispatches: 0, repeated: 0, bindGroups: 0, submits: 0 };

/** A kernel that the webgpu backend does not have yet. */
export type WebGpuKernel = { kernelName: string; register(webgpu: WebGpu): void };

/**
 * The kernel of an operation.
 * @param compute - the operation's inputs and attributes → its outputs
 */
export function onWebGpu<Inputs extends tf.Tensor[], Attributes extends object[], Outputs extends tf.Tensor[]>(
  { kernelName }: Kernel<Inputs, Attributes, Outputs>,
  compute: (
    inputs: { [i in keyof Inputs]: tf.TensorInfo },
    webgpu: WebGpu,
    ...attributes: Attributes
  ) => { [i in keyof Outputs]: tf.TensorInfo },
): WebGpuKernel {
  // TensorFlow.js's list of kernels knows no types: these are what `kernelOf` passes on.
  const untyped = compute as unknown as (
    inputs: tf.TensorInfo[],
    webgpu: WebGpu,
    attributes: object,
  ) => tf.TensorInfo[];
  return {
    kernelName,
    register: (webgpu) => {
      const kernelFunc = ({ inputs, attrs }: { inputs: object; attrs: object }) => {
        try {
          return untyped(Object.values(inputs), webgpu, attrs);
        } finally {
          webgpu.freeScratch();
        }
      };
      if (tf.getKernel(kernelName, 'webgpu')) tf.unregisterKernel(kernelName, 'webgpu'); // that of a device before
      tf.registerKernel({ kernelName, backendName: 'webgpu', kernelFunc: kernelFunc as unknown as tf.KernelFunc });
    },
  };
}

/**
 * A kernel in the place of one of the backend's own.
 * @param compute - inputs and attributes → the output, or undefined for what is left to the other
 */
export function replaceOnWebGpu(
  kernelName: string,
  compute: (
    inputs: Record<string, tf.TensorInfo>,
    webgpu: WebGpu,
    attributes: Record<string, unknown>,
  ) => tf.TensorInfo | undefined,
): WebGpuKernel {
  let original: tf.KernelFunc;
  return {
    kernelName,
    register: (webgpu) => {
      original ??= tf.getKernel(kernelName, 'webgpu').kernelFunc;
      tf.unregisterKernel(kernelName, 'webgpu');
      const kernelFunc: tf.KernelFunc = (call) => {
        try {
          const attributes = call.attrs as Record<string, unknown>;
          return compute(call.inputs as Record<string, tf.TensorInfo>, webgpu, attributes) ?? original(call);
        } finally {
          webgpu.freeScratch();
        }
      };
      tf.registerKernel({ kernelName, backendName: 'webgpu', kernelFunc });
    },
  };
}

/** Bytes from one call's numbers to the next one's: what every device can bind. */
const SLOT = 256;
/** Calls whose numbers travel together, and bytes for their lists. */
const [SLOTS, DATA_BYTES] = [1024, 2 ** 22];

/** Bind groups that are kept: those of buffers that are there no more go with all others, once there are so many. */
const MOST_GROUPS = 2 ** 14;

/** Programs that are kept: a token position of a batch of rows has one for each layer. */
const MOST_PROGRAMS = 2 ** 11;

/** Workgroups there may be in one dimension, on every device. */
const MOST_GROUPS_IN_A_ROW = 65_535;

const toFloats = wgsl({
  name: 'toFloats',
  inputs: { x: 'i32' },
  outputs: { y: 'f32' },
  numbers: { count: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let i = group * THREADS + thread;
  if (i < u.count) { y[i] = f32(x[i]); }
}`,
});

type Known = Compiled & { id: number };

/** A call that was made: its slot holds the workgroups and the kernel's numbers. */
type Call = { kernel: Known; group: BindGroup; slot: Int32Array; list: ArrayLike<number> | undefined };

/** @param batch - calls after which commands are submitted, whoever made them */
export function createWebGpu(backend: WebGpuBackend, { batch }: { batch: number }): WebGpu {
  const { device } = backend;
  const slots = newRing(backend, SLOTS * SLOT, USAGE.uniform);
  const lists = newRing(backend, DATA_BYTES + 4 * MOST_DATA, USAGE.storage);
  const submit = backend.submitQueue.bind(backend);
  backend.submitQueue = () => {
    counters.submits++;
    slots.flush();
    lists.flush();
    submit();
  };
  const submitNow = () => {
    backend.endComputePassEncoder();
    backend.submitQueue();
  };

  const putList = (list: ArrayLike<number>, type: Scalar): number => {
    const at = lists.take(4 * list.length);
    (type === 'f32' ? lists.floats : lists.integers).set(list, at / 4);
    return at;
  };
  // What has few numbers travels with those of the calls: the backend makes a buffer for each of them.
  const upload = backend.uploadToGPU.bind(backend);
  backend.uploadToGPU = (dataId) => {
    const data = backend.tensorMap.get(dataId);
    const values = data.values as ArrayLike<number> | undefined | null;
    if (data.resource || !values || values.length === 0 || values.length > MOST_DATA) return upload(dataId);
    data.values = null;
    upload(dataId);
    if (!lists.fits(4 * values.length)) submitNow();
    const at = putList(values, data.dtype === 'float32' ? 'f32' : 'i32');
    backend.ensureCommandEncoderReady();
    backend.endComputePassEncoder();
    backend.commandEncoder!.copyBufferToBuffer(lists.buffer, at, data.resource!, 0, 4 * values.length);
  };

  const compiled = new Map<Wgsl, Known>();
  const compiledOf = (kernel: Wgsl): Known => {
    const known = compiled.get(kernel);
    if (known) return known;
    const made = { id: compiled.size, ...compile(kernel, backend) };
    compiled.set(kernel, made);
    return made;
  };

  // Bind groups by kernel and buffers: memory is given out again in the same order, so most calls find theirs.
  const groups = new Map<string, BindGroup>();
  const groupOf = ({ id, layout, data }: Known, bound: GpuBuffer[]): BindGroup => {
    let key = `${id}`;
    for (const buffer of bound) key += `,${numberOf(buffer)}`;
    const known = groups.get(key);
    if (known) return known;
    if (groups.size >= MOST_GROUPS) groups.clear();
    counters.bindGroups++;
    const resources = [
      { buffer: slots.buffer, size: SLOT },
      ...(data ? [{ buffer: lists.buffer, size: 4 * MOST_DATA }] : []),
      ...bound.map((buffer) => ({ buffer })),
    ];
    const made = device.createBindGroup({
      layout,
      entries: resources.map((resource, binding) => ({ binding, resource })),
    });
    groups.set(key, made);
    return made;
  };

  // A tensor without elements has no memory, but something must be bound; one that is written is never without.
  const nothing = device.createBuffer({ size: 16, usage: USAGE.storage });
  const bufferOf = ({ dataId }: tf.TensorInfo): GpuBuffer => {
    const data = backend.tensorMap.get(dataId);
    if (data.resource) return data.resource;
    if ((data.values as ArrayLike<number> | undefined)?.length === 0) return nothing;
    backend.uploadToGPU(dataId);
    return data.resource!;
  };

  /** The backend casts integers to float32 in name only. */
  const inFloats = (tensor: tf.TensorInfo): tf.TensorInfo => {
    if (backend.tensorMap.get(tensor.dataId).dtype === 'float32') return tensor;
    const floats = scratch(tensor.shape);
    const count = sizeOf(tensor.shape);
    run(toFloats, { x: tensor, y: floats, count }, Math.ceil(count / toFloats.threads));
    return floats;
  };

  const run = (kernel: Wgsl, args: Record<string, unknown>, count: number): void => {
    if (count === 0) return;
    const known = compiledOf(kernel);
    const bound: GpuBuffer[] = [];
    for (const name of known.tensors) {
      const tensor = args[name] as tf.TensorInfo;
      bound.push(bufferOf(kernel.inputs[name] === 'f32' ? inFloats(tensor) : tensor));
    }
    const group = groupOf(known, bound);
    const list = known.data && (args[known.data[0]] as ArrayLike<number>);
    if (list && list.length > MOST_DATA) {
      throw new Error(`${kernel.name}: a list of ${list.length} numbers, where there may be ${MOST_DATA}`);
    }
    const offsets = takeSlot(known, list);
    const at = offsets[0] / 4;
    slots.integers[at] = count;
    for (let i = 0; i < known.numbers.length; i++) putNumber(at, known, i, args[known.numbers[i][0]] as number);
    recording?.push({ kernel: known, group, slot: slots.integers.slice(at, at + 1 + known.numbers.length), list });
    dispatch(known, group, count, offsets);
  };

  /** @returns where its numbers go, and where its list lies, in bytes */
  const takeSlot = ({ data }: Known, list: ArrayLike<number> | undefined): number[] => {
    if (!slots.fits(SLOT) || (list && !lists.fits(4 * list.length))) submitNow();
    const at = slots.take(SLOT);
    return list ? [at, putList(list, data![1])] : [at];
  };

  const putNumber = (at: number, { numbers }: Known, i: number, value: number): void => {
    (numbers[i][1] === 'u32' ? slots.integers : slots.floats)[at + 1 + i] = value;
  };

  const dispatch = ({ pipeline }: Known, group: BindGroup, count: number, offsets: number[]): void => {
    backend.ensureCommandEncoderReady();
    backend.computePassEncoder ??= backend.commandEncoder!.beginComputePass();
    const pass = backend.computePassEncoder;
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, group, offsets);
    const width = Math.min(count, MOST_GROUPS_IN_A_ROW);
    pass.dispatchWorkgroups(width, Math.ceil(count / width));
    counters.dispatches++;
    if (++backend.dispatchCountInPass >= batch) submitNow();
  };

  const programs = new Map<string, Call[]>();
  let recording: Call[] | undefined;
  const repeat: WebGpu['repeat'] = (key, tensors, changes, calls) => {
    let name = key;
    for (const tensor of tensors) name += `,${numberOf(bufferOf(tensor))}`;
    const program = programs.get(name);
    if (program) {
      for (const call of program) runAgain(call, changes);
      return;
    }
    if (programs.size >= MOST_PROGRAMS) forgetPrograms();
    recording = [];
    try {
      calls();
      programs.set(name, recording);
    } finally {
      recording = undefined;
      scratchUses.clear();
    }
  };
  const runAgain = ({ kernel, group, slot, list }: Call, changes: Changes): void => {
    counters.repeated++;
    const newList = list && ((changes[kernel.data![0]] as ArrayLike<number> | undefined) ?? list);
    if (newList?.length !== list?.length) {
      throw new Error(`a list of ${newList?.length} numbers, where ${list?.length} were recorded`);
    }
    const offsets = takeSlot(kernel, newList);
    const at = offsets[0] / 4;
    slots.integers.set(slot, at);
    for (let i = 0; i < kernel.numbers.length; i++) {
      const value = changes[kernel.numbers[i][0]];
      if (value !== undefined) putNumber(at, kernel, i, value as number);
    }
    dispatch(kernel, group, slot[0], offsets);
  };

  // What programs write and read meanwhile is theirs, and nobody else's, as long as they are kept. They run one after the other,
  // so that they share it; of each size that is a power of 2, or little would be shared.
  const programScratch = new Map<string, tf.TensorInfo>();
  const scratchUses = new Map<number, number>();
  const scratchOfProgram = (shape: number[]): tf.TensorInfo => {
    const size = 2 ** Math.ceil(Math.log2(sizeOf(shape)));
    const use = scratchUses.get(size) ?? 0;
    scratchUses.set(size, use + 1);
    const name = `${size}, ${use}`;
    const tensor = programScratch.get(name) ?? output([size]);
    programScratch.set(name, tensor);
    return { ...tensor, shape };
  };
  const forgetPrograms = (): void => {
    programs.clear();
    for (const { dataId } of programScratch.values()) backend.disposeData(dataId);
    programScratch.clear();
  };

  const taken: tf.TensorInfo[] = [];
  const output: WebGpu['output'] = (shape, dtype = 'float32') => {
    const empty = shape.includes(0);
    return backend.makeTensorInfo(shape, dtype, empty ? new Float32Array(0) : undefined);
  };
  const scratch: WebGpu['scratch'] = (shape) => {
    if (recording) return scratchOfProgram(shape);
    const tensor = output(shape);
    taken.push(tensor);
    return tensor;
  };
  const overwritten: WebGpu['overwritten'] = ({ dataId, shape, dtype }) => {
    backend.incRef(dataId);
    backend.tensorMap.get(dataId).values = null; // what may have been read of it is outdated
    return { dataId, shape, dtype };
  };
  return {
    run: run as WebGpu['run'],
    repeat,
    output,
    scratch,
    freeScratch() {
      for (const { dataId } of taken.splice(0)) backend.disposeData(dataId);
    },
    overwritten,
    writable(input) {
      const buffer = bufferOf(input);
      if (backend.refCount(input.dataId) === 1) return overwritten(input);
      const copy = output(input.shape);
      if (buffer === nothing) return copy;
      backend.ensureCommandEncoderReady();
      backend.endComputePassEncoder();
      backend.commandEncoder!.copyBufferToBuffer(buffer, 0, bufferOf(copy), 0, buffer.size);
      return copy;
    },
    isOnGpu: ({ dataId }) => Boolean(backend.tensorMap.get(dataId).resource),
  };
}

/**
 * A buffer that is written piece by piece in this process's memory, and goes to the GPU before the commands that read it:
 * the queue keeps that order, so that the next commands may find other numbers in the same place.
 */
function newRing({ device }: WebGpuBackend, bytes: number, usage: number) {
  const buffer = device.createBuffer({ size: bytes, usage: usage | USAGE.copyDestination | USAGE.copySource });
  const content = new ArrayBuffer(bytes);
  let used = 0;
  const room = usage === USAGE.uniform ? bytes : bytes - 4 * MOST_DATA; // a list is bound with room for the longest
  return {
    buffer,
    floats: new Float32Array(content),
    integers: new Int32Array(content),
    fits: (size: number) => used + size <= room,
    /** @returns where these bytes begin */
    take(size: number): number {
      const at = used;
      used += SLOT * Math.ceil(size / SLOT);
      return at;
    },
    flush() {
      if (used > 0) device.queue.writeBuffer(buffer, 0, content, 0, used);
      used = 0;
    },
  };
}
