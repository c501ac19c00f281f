/**
 * Binds operations to their kernels in WGSL. What an operation takes and gives is declared where it is defined (`fusible`),
 * what a kernel takes beside its source. A call costs microseconds: pipelines and bind groups are made once and found again,
 * and all numbers that calls come with travel to the GPU in one piece when their commands do.
 */
import * as tf from '@tensorflow/tfjs';
import type { Kernel } from './fusible.ts';
import {
  type BindGroup,
  COMPUTE_STAGE,
  type GpuBuffer,
  numberOf,
  USAGE,
  type WebGpuBackend,
} from './webgpu_backend.ts';

type Scalar = 'f32' | 'u32' | 'i32';

/**
 * A kernel in WGSL. Its source defines `fn kernel(group: u32, thread: u32)`, which every thread of every workgroup runs. It
 * sees its inputs and outputs as arrays, its numbers as the fields of `u`, and may call `sumOfGroup(x, thread)` and
 * `largestOfGroup(x, thread)`, which put together what all threads of a workgroup bring.
 */
export type Wgsl = {
  name: string;
  /** Tensors that are read. */
  inputs: Record<string, Scalar>;
  /** Tensors that are written, or read and written: none may be an input, too. */
  outputs: Record<string, Scalar>;
  numbers: Record<string, 'f32' | 'u32'>;
  /** A list of numbers, at most {@link MOST_DATA} of them. */
  data?: Record<string, Scalar>;
  /** Threads of a workgroup, a power of 2. */
  threads: number;
  source: string;
};

type Arguments<K extends Wgsl> = { [Name in keyof K['inputs'] | keyof K['outputs']]: tf.TensorInfo } & {
  [Name in keyof K['numbers']]: number;
} & { [Name in keyof NonNullable<K['data']>]: ArrayLike<number> };

export const wgsl = <const K extends Wgsl>(kernel: K): K => kernel;

/** What a binding works with. */
export type WebGpu = {
  /** Lets so many workgroups run a kernel. */
  run<K extends Wgsl>(kernel: K, args: Arguments<K>, groups: number): void;
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

/** What there was to do so far: our own calls, the bind groups made for them, and the times that commands were submitted. */
export const counters = { dispatches: 0, bindGroups: 0, submits: 0 };

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
  return {
    kernelName,
    register: (webgpu) => {
      const { kernelFunc: original } = tf.getKernel(kernelName, 'webgpu');
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
/** Numbers in a list. */
const MOST_DATA = 2 ** 16;

/** Bind groups that are kept: those of buffers that are there no more go with all others, once there are so many. */
const MOST_GROUPS = 2 ** 14;

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

type Compiled = {
  id: number;
  pipeline: object;
  layout: object;
  /** In the order of their bindings. */
  tensors: string[];
  numbers: [name: string, type: 'f32' | 'u32'][];
  data: [name: string, type: Scalar] | undefined;
};

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

  const compiled = new Map<Wgsl, Compiled>();
  const compiledOf = (kernel: Wgsl): Compiled => {
    const known = compiled.get(kernel);
    if (known) return known;
    const made = { id: compiled.size, ...compile(kernel, backend) };
    compiled.set(kernel, made);
    return made;
  };

  // Bind groups by kernel and buffers: memory is given out again in the same order, so most calls find theirs.
  const groups = new Map<string, BindGroup>();
  const groupOf = ({ id, layout, data }: Compiled, bound: GpuBuffer[]): BindGroup => {
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
    const count = tensor.shape.reduce((product, size) => product * size, 1);
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
    if (!slots.fits(SLOT) || (list && !lists.fits(4 * list.length))) submitNow();
    const at = slots.take(SLOT);
    slots.integers[at / 4] = count;
    for (let i = 0; i < known.numbers.length; i++) {
      const [name, type] = known.numbers[i];
      (type === 'u32' ? slots.integers : slots.floats)[at / 4 + 1 + i] = args[name] as number;
    }
    const offsets = list ? [at, putList(list, known.data![1])] : [at];
    backend.ensureCommandEncoderReady();
    backend.computePassEncoder ??= backend.commandEncoder!.beginComputePass();
    const pass = backend.computePassEncoder;
    pass.setPipeline(known.pipeline);
    pass.setBindGroup(0, group, offsets);
    const width = Math.min(count, MOST_GROUPS_IN_A_ROW);
    pass.dispatchWorkgroups(width, Math.ceil(count / width));
    counters.dispatches++;
    if (++backend.dispatchCountInPass >= batch) submitNow();
  };

  const taken: tf.TensorInfo[] = [];
  const output: WebGpu['output'] = (shape, dtype = 'float32') => {
    const empty = shape.includes(0);
    return backend.makeTensorInfo(shape, dtype, empty ? new Float32Array(0) : undefined);
  };
  const scratch: WebGpu['scratch'] = (shape) => {
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

function compile(kernel: Wgsl, { device }: WebGpuBackend): Omit<Compiled, 'id'> {
  const { inputs, outputs, numbers, threads, source } = kernel;
  const [data] = Object.entries(kernel.data ?? {});
  const lists: [string, Scalar, 'read' | 'read_write'][] = [
    ...(data ? [[...data, 'read'] as [string, Scalar, 'read']] : []),
    ...Object.entries(inputs).map(([name, type]) => [name, type, 'read'] as [string, Scalar, 'read']),
    ...Object.entries(outputs).map(([name, type]) => [name, type, 'read_write'] as [string, Scalar, 'read_write']),
  ];
  const fields = Object.entries({ groups: 'u32', ...numbers }).map(([name, type]) => `${name}: ${type}`);
  const code = `
struct Numbers { ${fields.join(', ')} }
@group(0) @binding(0) var<uniform> u: Numbers;
${lists.map(([name, type, access], i) => `@group(0) @binding(${i + 1}) var<storage, ${access}> ${name}: array<${type}>;`).join('\n')}
const THREADS = ${threads}u;
${/(sum|largest)OfGroup/.test(source) ? OF_GROUP : ''}
${source}
@compute @workgroup_size(${threads})
fn main(
  @builtin(workgroup_id) id: vec3u,
  @builtin(num_workgroups) size: vec3u,
  @builtin(local_invocation_index) thread: u32,
) {
  let group = id.y * size.x + id.x;
  if (group < u.groups) { kernel(group, thread); }
}`;
  const entry = (binding: number, type: string, hasDynamicOffset: boolean) => {
    return { binding, visibility: COMPUTE_STAGE, buffer: { type, hasDynamicOffset } };
  };
  const layout = device.createBindGroupLayout({
    entries: [
      entry(0, 'uniform', true),
      ...lists.map(([, , access], i) =>
        entry(i + 1, access === 'read' ? 'read-only-storage' : 'storage', i === 0 && data !== undefined),
      ),
    ],
  });
  const pipeline = device.createComputePipeline({
    label: kernel.name,
    layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
    compute: { module: device.createShaderModule({ label: kernel.name, code }), entryPoint: 'main' },
  });
  return {
    pipeline,
    layout,
    tensors: [...Object.keys(inputs), ...Object.keys(outputs)],
    numbers: Object.entries(numbers),
    data,
  };
}

const OF_GROUP = `
var<workgroup> ofThreads: array<f32, THREADS>;
fn sumOfGroup(x: f32, thread: u32) -> f32 {
  ofThreads[thread] = x;
  workgroupBarrier();
  for (var half = THREADS / 2; half > 0; half >>= 1) {
    if (thread < half) { ofThreads[thread] += ofThreads[thread + half]; }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&ofThreads[0]);
}
fn largestOfGroup(x: f32, thread: u32) -> f32 {
  ofThreads[thread] = x;
  workgroupBarrier();
  for (var half = THREADS / 2; half > 0; half >>= 1) {
    if (thread < half) { ofThreads[thread] = max(ofThreads[thread], ofThreads[thread + half]); }
    workgroupBarrier();
  }
  return workgroupUniformLoad(&ofThreads[0]);
}`;
