/**
 * Any GPU, through the npm package `webgpu` (Dawn) and TensorFlow.js's backend for browsers. Both are made for pages,
 * where a tensor is small and an error goes to a console: here every failure of the device ends the run.
 */
import { setImmediate } from 'node:timers/promises';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';
import { type GpuBuffer, MAP_READ, numberOf, USAGE, type WebGpuBackend } from '../ops/webgpu_backend.ts';
import { registerWebGpuKernels } from '../ops/webgpu_kernels.ts';
import { chooseGpu, type Device, type Gpu, isSoftware, listGpus, loadDawn } from './gpus.ts';

/** Limits that TensorFlow.js's kernels profit from; a device has WebGPU's small defaults unless asked for more. */
const LIMITS = [
  'maxBufferSize',
  'maxStorageBufferBindingSize',
  'maxComputeWorkgroupStorageSize',
  'maxComputeWorkgroupsPerDimension',
  'maxComputeWorkgroupSizeX',
  'maxComputeInvocationsPerWorkgroup',
];

/** Bytes of buffers that wait to be used again. Lengths change from step to step, so most sizes never come back. */
const MAX_SPARE_BYTES = 2 ** 30;

/** Calls whose commands are submitted together: to submit costs as much JavaScript as several calls. */
const BATCH = 64;

const REMEDIES =
  'lower --micro-batch-tokens or --batch-size, pass --gradient-checkpointing, take a smaller model, or use --backend wasm';

/**
 * Makes the backend `webgpu` current.
 * @param gpu - as in {@link chooseGpu}
 * @param options - `kernels`: whether with the project's own
 * @returns the GPU that was taken, in words
 * @throws {UserError} if the package or a GPU is missing
 */
export async function loadWebGpu(gpu: string | undefined, options: { kernels: boolean }): Promise<string> {
  return startWebGpu(chooseGpu(await listGpus(), gpu), options);
}

/** {@link loadWebGpu} on this one, or on Dawn's own that computes nothing: `{ api: 'null', name: '' }`. */
export async function startWebGpu(chosen: Gpu, { kernels }: { kernels: boolean }): Promise<string> {
  const { create, globals } = await loadDawn();
  const options = [`backend=${chosen.api}`, `adapter=${chosen.name}`];
  // Compiling zeros into every shader takes SwiftShader seconds, and no kernel reads shared memory before writing it.
  if (isSoftware(chosen)) options.push('enable-dawn-features=disable_workgroup_init');
  const dawn = create(options);
  kept.push(dawn);
  const adapter = await dawn.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter)
    throw new UserError(`backend webgpu cannot use ${chosen.name}: name another with --gpu, or use --backend wasm`);
  const requiredLimits = Object.fromEntries(LIMITS.map((name) => [name, adapter.limits[name]]));
  const device = await adapter.requestDevice({ requiredLimits });

  Object.assign(globalThis, globals);
  const { WebGPUBackend } = await import('@tensorflow/tfjs-backend-webgpu');
  // Only its constructor asks whether this is a browser with WebGPU. (Node 20 has no navigator at all.)
  const navigator = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  Object.defineProperty(globalThis, 'navigator', { value: { gpu: dawn }, configurable: true });
  const backend = new WebGPUBackend(device as never, adapter.info as never) as unknown as WebGpuBackend;
  if (navigator) Object.defineProperty(globalThis, 'navigator', navigator);
  else delete (globalThis as { navigator?: unknown }).navigator;

  readTogether(backend);
  refuseFailures(backend, device, requiredLimits);
  reuseAtOnce(backend);
  mendSoftmax(requiredLimits.maxComputeWorkgroupsPerDimension);
  tf.registerBackend('webgpu', () => backend);
  await tf.setBackend('webgpu');
  tf.env().set('WEBGPU_DEFERRED_SUBMIT_BATCH_SIZE', BATCH);
  if (kernels) registerWebGpuKernels({ batch: BATCH });
  const notes = [
    ...(isSoftware(chosen) ? ['software, no GPU: slow, for tests'] : []),
    ...(kernels ? [] : ['--kernels off']),
  ];
  return [`${chosen.name}, ${chosen.api}`, ...notes].join('; ');
}

/** Dawn ends, and the process with it, when the garbage collector finds what `create` returned, device or no device. */
const kept: object[] = [];

/** Bytes that are read together at most: more have a buffer of their own. */
const READ_BYTES = 2 ** 16;

/**
 * Reads all that is asked for in one turn with one submission, through a buffer that is kept. The backend makes a buffer and
 * submits for each tensor, which costs more than all the rest of a small model's token position.
 */
function readTogether(backend: WebGpuBackend): void {
  const readAlone = backend.read.bind(backend);
  const spare: GpuBuffer[] = [];
  type Reading = { buffer: GpuBuffer; used: number; content: Promise<ArrayBuffer> };
  let open: Reading | undefined;
  const begin = (): Reading => {
    const usage = USAGE.mapRead | USAGE.copyDestination;
    const buffer = spare.pop() ?? backend.device.createBuffer({ size: READ_BYTES, usage });
    const read = async () => {
      if (open === reading) open = undefined;
      if (backend.commandEncoder) backend.submitQueue();
      await buffer.mapAsync(MAP_READ, 0, reading.used);
      const content = buffer.getMappedRange(0, reading.used).slice(0);
      buffer.unmap();
      spare.push(buffer);
      return content;
    };
    const reading: Reading = { buffer, used: 0, content: Promise.resolve().then(read) }; // after the others of this turn
    return reading;
  };
  backend.read = async (dataId) => {
    const data = backend.tensorMap.get(dataId);
    const { resource, dtype, values } = data;
    if (values || !resource || resource.size > READ_BYTES || dtype === 'complex64') return readAlone(dataId);
    if (open && open.used + resource.size > READ_BYTES) open = undefined;
    open ??= begin();
    const { buffer, used, content } = open;
    open.used += resource.size;
    backend.ensureCommandEncoderReady();
    backend.endComputePassEncoder();
    backend.commandEncoder!.copyBufferToBuffer(resource, 0, buffer, used, resource.size);
    const bytes = (await content).slice(used, used + resource.size);
    data.values = tf.util.convertBackendValuesAndArrayBuffer(bytes, dtype);
    return data.values as tf.backend_util.BackendValues;
  };
}

/**
 * WebGPU reports errors to whoever listens and goes on with nonsense. Here the first one is kept, and thrown when
 * numbers are read next: none that came after it gets out.
 */
function refuseFailures(backend: WebGpuBackend, device: Device, limits: Record<string, number>): void {
  let failure: Error | undefined;
  device.addEventListener('uncapturederror', (event) => {
    event.preventDefault();
    const { error } = event;
    const [reason] = error.message.split('\n');
    const outOfMemory = error.constructor.name === 'GPUOutOfMemoryError';
    failure ??= outOfMemory ? new UserError(`the GPU is out of memory: ${REMEDIES}`) : new Error(`webgpu: ${reason}`);
  });
  const waiting = new Set<(error: Error) => void>();
  void device.lost.then(({ message }) => {
    failure ??= new UserError(`the GPU was lost (${message.split('\n')[0]}): if its memory was full, ${REMEDIES}`);
    for (const reject of waiting) reject(failure);
  });

  const { bufferManager } = backend;
  const acquire = bufferManager.acquireBuffer.bind(bufferManager);
  const largest = Math.min(limits.maxBufferSize, limits.maxStorageBufferBindingSize);
  bufferManager.acquireBuffer = (size, ...rest) => {
    if (failure) throw failure;
    const megabytes = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
    if (size > largest) {
      throw new UserError(
        `a tensor of ${megabytes(size)} MB is too large for this GPU, which allows ${megabytes(largest)} MB: ${REMEDIES}`,
      );
    }
    if (bufferManager.numBytesAllocated - bufferManager.numBytesUsed > MAX_SPARE_BYTES) dropSpareBuffers(backend);
    try {
      return acquire(size, ...rest);
    } catch (error) {
      // What is mapped into this process's memory as well is refused at once.
      throw error instanceof RangeError ? new UserError(`the GPU is out of memory: ${REMEDIES}`) : error;
    }
  };

  const read = backend.read.bind(backend);
  backend.read = async (dataId) => {
    let lost = (_: Error) => {};
    try {
      // What waits for a lost GPU may wait for ever.
      const whenLost = new Promise<never>((_, reject) => {
        lost = reject;
        waiting.add(reject);
      });
      const values = await Promise.race([read(dataId), whenLost]);
      if (failure) throw failure;
      return values;
    } catch (error) {
      await setImmediate(); // why it failed may be told right after
      throw failure ?? error;
    } finally {
      waiting.delete(lost);
    }
  };
  const readSync = backend.readSync.bind(backend);
  backend.readSync = (dataId) => {
    if (backend.tensorMap.get(dataId).values) return readSync(dataId);
    throw new Error('webgpu cannot read synchronously outside of browsers: use `await tensor.data()`');
  };
}

/**
 * Gives the memory of a tensor that is gone to the next one at once. The backend waits until all commands that refer to it
 * are submitted; but commands are run in their order, so that the new content cannot come before the old was read. Of
 * several buffers, the one that was made first: what is done again and again then finds its tensors in the same places.
 */
function reuseAtOnce(backend: WebGpuBackend): void {
  const nothing = { add: () => {}, has: () => false };
  Object.defineProperty(backend, 'commandQueueOwnedIds', { get: () => nothing, set: () => {} });

  const { bufferManager } = backend;
  const acquire = bufferManager.acquireBuffer.bind(bufferManager);
  bufferManager.acquireBuffer = (size, usage, ...rest) => {
    const free = bufferManager.freeBuffers.get(`${size}_${usage}`); // of these, the last one will be taken
    if (free && free.length > 1) {
      let first = free.length - 1;
      for (let i = 0; i < free.length; i++) if (numberOf(free[i]) < numberOf(free[first])) first = i;
      const oldest = free[first];
      free[first] = free[free.length - 1];
      free[free.length - 1] = oldest;
    }
    const buffer = acquire(size, usage, ...rest);
    numberOf(buffer);
    return buffer;
  };
}

function dropSpareBuffers(backend: WebGpuBackend): void {
  // Commands that are still to be submitted may use them.
  if (backend.commandEncoder) {
    backend.endComputePassEncoder();
    backend.submitQueue();
  }
  const { bufferManager: manager } = backend;
  for (const buffers of manager.freeBuffers.values()) {
    for (const buffer of buffers.splice(0)) {
      manager.numBytesAllocated -= buffer.size;
      manager.numFreeBuffers--;
      buffer.destroy();
    }
  }
}

/** The kernel runs a workgroup a row, and with more rows than there may be in one dimension, overwrites the last number. */
function mendSoftmax(maxRows: number): void {
  const { kernelFunc } = tf.getKernel('Softmax', 'webgpu');
  tf.unregisterKernel('Softmax', 'webgpu');
  tf.registerKernel({
    kernelName: 'Softmax',
    backendName: 'webgpu',
    kernelFunc: (args) => {
      const logits = args.inputs.logits as tf.Tensor;
      if (logits.size / logits.shape.at(-1)! <= maxRows) return kernelFunc(args);
      return tf.tidy(() => {
        const exps = tf.exp(tf.sub(logits, tf.max(logits, -1, true)));
        return tf.div(exps, tf.sum(exps, -1, true));
      });
    },
  });
}
