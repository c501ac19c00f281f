/** TensorFlow.js's webgpu backend as its kernels see it: those parts that are used here, some of which it calls private. */
import type * as tf from '@tensorflow/tfjs';

export type GpuBuffer = {
  size: number;
  destroy(): void;
  mapAsync(mode: number, from: number, bytes: number): Promise<void>;
  getMappedRange(from: number, bytes: number): ArrayBuffer;
  unmap(): void;
  number?: number;
};

let buffers = 0;

/** Numbers buffers in the order in which they are first asked for. */
export const numberOf = (buffer: GpuBuffer): number => {
  buffer.number ??= ++buffers;
  return buffer.number;
};

type Layout = object;
type Pipeline = object;
export type BindGroup = object;

/** Those parts of WebGPU that kernels use: its package is optional, and so are its types. */
type Device = {
  createShaderModule(descriptor: { label: string; code: string }): object;
  createBindGroupLayout(descriptor: { entries: object[] }): Layout;
  createPipelineLayout(descriptor: { bindGroupLayouts: Layout[] }): object;
  createComputePipeline(descriptor: object): Pipeline;
  createBindGroup(descriptor: { layout: Layout; entries: object[] }): BindGroup;
  createBuffer(descriptor: { size: number; usage: number }): GpuBuffer;
  destroy(): void;
  queue: { writeBuffer(buffer: GpuBuffer, offset: number, data: ArrayBuffer, from: number, bytes: number): void };
  limits: Record<string, number>;
};

type ComputePass = {
  setPipeline(pipeline: Pipeline): void;
  setBindGroup(index: number, group: BindGroup, dynamicOffsets: number[]): void;
  dispatchWorkgroups(x: number, y: number): void;
};

type CommandEncoder = {
  beginComputePass(): ComputePass;
  copyBufferToBuffer(source: GpuBuffer, from: number, destination: GpuBuffer, to: number, bytes: number): void;
};

export type WebGpuBackend = tf.KernelBackend & {
  device: Device;
  bufferManager: {
    numBytesUsed: number;
    numBytesAllocated: number;
    numFreeBuffers: number;
    freeBuffers: Map<string, GpuBuffer[]>;
    acquireBuffer(size: number, usage: number, mappedAtCreation?: boolean, reuse?: boolean): GpuBuffer;
  };
  /** `dtype` is that of the memory: what was cast to float32 may still hold integers. */
  tensorMap: { get(dataId: object): { dtype: tf.DataType; values?: unknown; resource?: GpuBuffer | null } };
  /** The commands that are not submitted yet, and the pass at their end: null where there is none. */
  commandEncoder: CommandEncoder | null;
  computePassEncoder: ComputePass | null;
  dispatchCountInPass: number;
  /** Tensors that commands not submitted yet refer to. */
  commandQueueOwnedIds: { add(dataId: object): void; has(dataId: object): boolean };
  ensureCommandEncoderReady(): void;
  endComputePassEncoder(): void;
  submitQueue(): void;
  /** Gives a tensor its memory on the GPU, filled with its values if it has any. */
  uploadToGPU(dataId: object): void;
  makeTensorInfo(shape: number[], dtype: tf.DataType, values?: unknown): tf.TensorInfo;
  incRef(dataId: object): void;
  refCount(dataId: object): number;
};

/** WebGPU's constants, which a browser has as globals. */
export const USAGE = { mapRead: 1, copySource: 4, copyDestination: 8, uniform: 64, storage: 128 };
export const COMPUTE_STAGE = 4;
export const MAP_READ = 1;
