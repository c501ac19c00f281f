import * as tf from '@tensorflow/tfjs';
import { describe, expect, test } from 'vitest';
import { UserError } from '../errors.ts';
import { describeDevice, loadTensorFlow, nvidiaGpus } from './tensorflow.ts';

const { loaded, reason } = await loadTensorFlow();
const why = loaded ? '' : ` (skipped: native TensorFlow: ${reason})`;

describe.skipIf(!loaded)(`the package that loads${why}`, () => {
  test('is the current backend, and says what it computes on', async () => {
    expect(tf.getBackend()).toBe('tensorflow');
    expect(loaded).toMatch(/^@tensorflow\/tfjs-node(-gpu)? on \S/);
    expect(loaded).not.toMatch(/[\n()]/);
    expect(Array.from(await tf.matMul(tf.ones([2, 3]), tf.fill([3, 1], 2)).data())).toEqual([6, 6]);
  });

  test('refuses a tensor for which there is no memory in one sentence, and what is there stays whole', async () => {
    const kept = tf.tensor1d([1, 2, 3]);
    let error: unknown;
    try {
      tf.fill([1e9, 1e9], 1); // more bytes than a processor can address
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(UserError);
    expect((error as Error).message).toMatch(/^out of memory: .*\[1000000000,1000000000\].*--micro-batch-tokens/);
    expect((error as Error).message).not.toContain('\n');
    expect(Array.from(await tf.add(kept, 1).data())).toEqual([2, 3, 4]);
  });

  test('throws other errors as they are', () => {
    const gather = () => tf.gather(tf.zeros([3, 2]), tf.tensor1d([0, 3], 'int32'));
    expect(gather).toThrow(/index value 3|indices\[1\] = 3/);
    expect(gather).not.toThrow(UserError);
  });
});

test('--gpu takes an index here', async () => {
  const error = await loadTensorFlow('Radeon').catch((error: Error) => error);
  expect(error).toBeInstanceOf(UserError);
  expect((error as Error).message).toMatch(/^--gpu Radeon names a GPU, .*index.*--backend webgpu/);
});

describe('what TensorFlow computes on', () => {
  const both = ['NVIDIA A100', 'NVIDIA T4'];
  test.each([
    [{ usesGpu: true, gpus: both.slice(0, 1), visible: '0' }, 'NVIDIA A100'],
    [{ usesGpu: true, gpus: both, visible: '1' }, 'NVIDIA T4 of the GPUs found (0: NVIDIA A100, 1: NVIDIA T4)'],
    [{ usesGpu: true, gpus: both, visible: 'GPU-5ebe9f43' }, /^one of the GPUs found/],
    [{ usesGpu: true, gpus: [], visible: '0' }, 'a GPU'],
    [{ usesGpu: false, gpus: [], visible: '0' }, 'the CPU: no NVIDIA GPU found'],
    [{ usesGpu: false, gpus: both, visible: '1' }, /^the CPU: NVIDIA T4 is there, but CUDA libraries are missing/],
    [{ usesGpu: false, gpus: both, visible: 'GPU-5ebe9f43' }, /^the CPU: NVIDIA A100 is there, but CUDA/],
    [{ usesGpu: false, gpus: both, visible: '2' }, /^the CPU: .*=2 is none .*\(0: NVIDIA A100, 1: NVIDIA T4\)$/],
    [{ usesGpu: false, gpus: both, visible: '-1' }, /^the CPU: .*=-1 is none/],
    [{ usesGpu: false, gpus: both, visible: '' }, /^the CPU: .*= is none/],
  ])('%o', (found, expected) => {
    const device = describeDevice('@tensorflow/tfjs-node-gpu', found);
    if (typeof expected === 'string') expect(device).toBe(expected);
    else expect(device).toMatch(expected);
  });

  test('is the CPU with the package for the CPU, whatever GPUs there are', () => {
    expect(describeDevice('@tensorflow/tfjs-node', { usesGpu: false, gpus: both, visible: '0' })).toBe('the CPU');
  });
});

test('without nvidia-smi, or where it fails, no GPU is found', async () => {
  expect(await nvidiaGpus('/nowhere/nvidia-smi')).toEqual([]);
  expect(await nvidiaGpus(process.execPath)).toEqual([]); // Node knows no --query-gpu
});
