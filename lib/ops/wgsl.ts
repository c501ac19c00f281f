/** Kernels in WGSL, and what a device makes of them. */
import type * as tf from '@tensorflow/tfjs';
import { COMPUTE_STAGE, type WebGpuBackend } from './webgpu_backend.ts';

export type Scalar = 'f32' | 'u32' | 'i32';

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

export type Arguments<K extends Wgsl> = { [Name in keyof K['inputs'] | keyof K['outputs']]: tf.TensorInfo } & {
  [Name in keyof K['numbers']]: number;
} & { [Name in keyof NonNullable<K['data']>]: ArrayLike<number> };

export const wgsl = <const K extends Wgsl>(kernel: K): K => kernel;

/** Numbers in a list. */
export const MOST_DATA = 2 ** 16;

/** A kernel as a device takes it. */
export type Compiled = {
  pipeline: object;
  layout: object;
  /** In the order of their bindings. */
  tensors: string[];
  numbers: [name: string, type: 'f32' | 'u32'][];
  data: [name: string, type: Scalar] | undefined;
};

export function compile(kernel: Wgsl, { device }: WebGpuBackend): Compiled {
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
