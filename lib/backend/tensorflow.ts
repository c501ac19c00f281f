/** Native TensorFlow, through tfjs-node-gpu or tfjs-node. */
import { execFile } from 'node:child_process';
import util from 'node:util';
import * as tf from '@tensorflow/tfjs';
import { UserError } from '../errors.ts';

/** The first takes a GPU where it can, else the CPU; the second is for the CPU, also of a Mac. */
const PACKAGES = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'];

type Binding = {
  executeOp(name: string, attributes: unknown, inputs: number[], outputs: number): unknown;
  createTensor(shape: number[], dtype: number, values: unknown): number;
};
type NodeBackend = tf.KernelBackend & { binding: Binding; isUsingGpuDevice: boolean };

/** What was loaded, and whether it uses a GPU; or why nothing was. */
export type TensorFlow = { loaded?: string; usesGpu?: boolean; reason?: string };

/**
 * Makes the backend `tensorflow` current.
 * @param gpu - the only GPU to use, by its index in the list of `nvidia-smi`
 * @returns the package that was loaded and what it computes on, or why none was
 * @throws {UserError} if `gpu` is no index, or the package that was loaded cannot use that GPU
 */
export async function loadTensorFlow(gpu?: string): Promise<TensorFlow> {
  if (gpu !== undefined && !/^\d+$/.test(gpu)) {
    throw new UserError(
      `--gpu ${gpu} names a GPU, but the backend tensorflow takes an index, as nvidia-smi counts them (0, 1, …): pass that, or --backend webgpu, which takes names`,
    );
  }
  setEnvironment(gpu);
  replaceDeprecated();
  const reasons: string[] = [];
  for (const name of PACKAGES) {
    try {
      await import(name);
      await tf.setBackend('tensorflow');
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'ERR_MODULE_NOT_FOUND') reasons.push(`${name}: ${String(message).trim().split('\n')[0]}`);
      continue;
    }
    const backend = tf.backend() as NodeBackend;
    refuseFailedAllocations(backend);
    const usesGpu = backend.isUsingGpuDevice;
    const visible = process.env.CUDA_VISIBLE_DEVICES!;
    const device = describeDevice(name, { usesGpu, gpus: await nvidiaGpus(), visible });
    if (gpu === undefined || usesGpu) return { loaded: `${name} on ${device}`, usesGpu };
    throw new UserError(`--gpu ${gpu} cannot be used: ${name} is on ${device}; leave --gpu out to train there`);
  }
  return { reason: reasons.join('; ') || 'not installed' };
}

/** What TensorFlow reads when it is loaded; what the user has set stays. */
function setEnvironment(gpu: string | undefined): void {
  process.env.TF_CPP_MIN_LOG_LEVEL ??= '2'; // errors only
  // Without this it takes all of the GPU's memory at once, and a second rank finds none.
  process.env.TF_FORCE_GPU_ALLOW_GROWTH ??= 'true';
  process.env.CUDA_DEVICE_ORDER ??= 'PCI_BUS_ID'; // nvidia-smi's order: CUDA's own begins with the fastest
  // One GPU: of several, tfjs-node puts what it is given on the last, while TensorFlow computes on the first.
  process.env.CUDA_VISIBLE_DEVICES = gpu ?? (process.env.CUDA_VISIBLE_DEVICES ?? '0').split(',')[0].trim();
}

/** Two functions of Node that tfjs-node calls: Node 22 warns of them, and 23 has removed one. */
function replaceDeprecated(): void {
  const functions = util as Record<string, unknown>;
  functions.isNullOrUndefined = (value: unknown) => value === null || value === undefined;
  functions.isArray = Array.isArray;
}

/** Names of NVIDIA's GPUs in the order of their indices; none where its driver is not installed. */
export function nvidiaGpus(command = 'nvidia-smi'): Promise<string[]> {
  const lines = (text: string) => text.split('\n').map((line) => line.trim());
  return new Promise((resolve) => {
    execFile(command, ['--query-gpu=name', '--format=csv,noheader'], { timeout: 10_000 }, (error, stdout) => {
      resolve(error ? [] : lines(stdout).filter((line) => line !== ''));
    });
  });
}

/**
 * What TensorFlow computes on, and where that is not a GPU, why.
 * @param name - the package
 * @param found.gpus - from {@link nvidiaGpus}
 * @param found.visible - `CUDA_VISIBLE_DEVICES`: an index, or another way to name a GPU; none if empty or negative
 */
export function describeDevice(
  name: string,
  { usesGpu, gpus, visible }: { usesGpu: boolean; gpus: string[]; visible: string },
): string {
  const index = visible === '' ? -1 : Number(visible);
  const found = gpus.map((gpu, i) => `${i}: ${gpu}`).join(', ');
  if (usesGpu) return gpus.length > 1 ? `${gpus[index] ?? 'one'} of the GPUs found (${found})` : (gpus[0] ?? 'a GPU');
  if (name !== PACKAGES[0]) return 'the CPU';
  if (gpus.length === 0) return 'the CPU: no NVIDIA GPU found';
  if (index < 0 || index >= gpus.length) {
    return `the CPU: CUDA_VISIBLE_DEVICES=${visible} is none of the GPUs found (${found})`;
  }
  return `the CPU: ${gpus[index] ?? gpus[0]} is there, but CUDA libraries are missing, as TF_CPP_MIN_LOG_LEVEL=0 shows`;
}

/** How TensorFlow, CUDA and C++ say that memory is full. */
const OUT_OF_MEMORY = /OOM when allocating|TF_Status: 8\b|resource.exhausted|out.of.memory|bad_alloc/i;

/** TensorFlow says in its own words, over several lines, that memory is full: here in one sentence that says what to do. */
function refuseFailedAllocations(backend: NodeBackend): void {
  const { binding } = backend;
  const guarded =
    <Values extends unknown[], Result>(call: (...values: Values) => Result) =>
    (...values: Values): Result => {
      try {
        return call(...values);
      } catch (error) {
        const { message } = error as Error;
        if (!OUT_OF_MEMORY.test(message)) throw error;
        const shape = /shape(\[[\d,]*\])/.exec(message);
        throw new UserError(
          `out of memory: native TensorFlow found no room for ${shape ? `a tensor of shape ${shape[1]}` : 'another tensor'}: lower --micro-batch-tokens, --batch-size or --lora-rank, pass --gradient-checkpointing, or take a smaller model`,
        );
      }
    };
  // Its functions cannot be replaced, but what kernels call is whatever the backend holds.
  const { executeOp, createTensor } = binding;
  backend.binding = Object.create(binding, {
    executeOp: { value: guarded(executeOp) },
    createTensor: { value: guarded(createTensor) },
  });
}
