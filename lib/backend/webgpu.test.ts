import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gpus, reason, WITHOUT_GPU } from '../../testing/gpus.ts';
import { writeTestData, writeTestModel } from '../../testing/model.ts';
import { jsonLines, NODE, runProcess } from '../../testing/processes.ts';
import { UserError } from '../errors.ts';
import { counters } from '../ops/on_webgpu.ts';
import { chooseGpu, type Gpu } from './gpus.ts';
import { initBackend } from './index.ts';

describe('choosing a GPU', () => {
  const gpu = (name: string): Gpu => ({ api: 'vulkan', name });
  const list = [gpu('llvmpipe (LLVM 15)'), gpu('Intel(R) Arc A770'), gpu('NVIDIA RTX 4090'), gpu('NVIDIA RTX 4090')];

  test.each([
    ['without a wish, the first that is not software', undefined, list[1]],
    ['by its index', '0', list[0]],
    ['by a part of its name, in any case', 'nvidia', list[2]],
    ['by a number in its name, where there are fewer GPUs', '4090', list[2]],
  ])('%s', (_, wish, chosen) => {
    expect(chooseGpu(list, wish)).toBe(chosen);
  });

  test('software, where there is nothing else', () => {
    expect(chooseGpu(list.slice(0, 1))).toBe(list[0]);
  });

  test.each([
    [
      'an unknown name',
      list,
      'radeon',
      /^--gpu radeon is not among the GPUs found \(0: llvmpipe .* 3: NVIDIA RTX 4090\)/,
    ],
    ['no name', list, '', /^--gpu {2}is not among/],
    ['an index too many', list, '11', /^--gpu 11 is not among/],
    ['another index too many', list, '8', /^--gpu 8 is not among/],
    ['the second of two GPUs of one name', list, '3', /^--gpu 3 cannot be told from --gpu 2/],
    ['any, where there is none', [], '0', /^backend webgpu found no GPU: .*driver.*--backend wasm/],
  ])('%s is refused in one sentence', (_, gpus, wish, message) => {
    expect(() => chooseGpu(gpus, wish)).toThrow(UserError);
    expect(() => chooseGpu(gpus, wish)).toThrow(message);
  });
});

// A GPU in software is slow, and compiles every kernel anew in every process.
describe.skipIf(WITHOUT_GPU)(`webgpu${reason}`, () => {
  let description: string;
  beforeAll(async () => {
    description = await initBackend('webgpu', { gpu: '0' });
  });

  test('says which GPU it took, and whether that is software', () => {
    expect(tf.getBackend()).toBe('webgpu');
    expect(description).toContain(gpus[0].name);
    expect(description.includes('software')).toBe(/swiftshader|llvmpipe/i.test(gpus[0].name));
  });

  test('leaves no trace of a browser', () => {
    expect((globalThis as { navigator?: object }).navigator ?? {}).not.toHaveProperty('gpu');
  });

  test('softmax of more rows than there may be workgroups in one dimension', async () => {
    const x = tf.tidy(() => tf.reshape(tf.linspace(-3, 3, 5 * 66_000), [66_000, 5])) as tf.Tensor2D;
    const last = tf.slice(x, [65_990, 0], [10, 5]);
    const [actual, expected] = [tf.slice(tf.softmax(x), [65_990, 0], [10, 5]), tf.softmax(last)];
    const values = await expected.data();
    (await actual.data()).forEach((p, i) => void expect(Math.abs(p - values[i])).toBeLessThan(1e-6));
  });

  test('-1e9 hides a score wholly, and rows that are all hidden give no NaN', async () => {
    const hidden = tf.tensor2d([0, -1e9, 1, -1e9, -1e9, -1e9], [2, 3]);
    const [a, b, c, ...rest] = await tf.softmax(tf.add(tf.zeros([2, 3]), hidden)).data();
    expect(b).toBe(0);
    expect(a + c).toBeCloseTo(1, 6);
    for (const p of rest) expect(p).toBeCloseTo(1 / 3, 6);
  });

  test('what is not a number stays so', async () => {
    const x = tf.tensor1d([Number.NaN, ...new Array(2000).fill(1)]);
    expect(await tf.sqrt(tf.sum(tf.square(x))).data()).toEqual(Float32Array.of(Number.NaN));
  });

  test('the gradient of gather adds up rows taken twice', async () => {
    const ids = tf.tensor1d([3, 0, 3, 3], 'int32');
    const gradient = tf.grad((x) => tf.sum(tf.square(tf.gather(x, ids))))(tf.ones([4, 2]));
    expect(Array.from(await gradient.data())).toEqual([2, 2, 0, 0, 0, 0, 6, 6]);
  });

  test('buffers that wait for their size to come back do not pile up', async () => {
    const allocated = () => (tf.memory() as unknown as { numBytesAllocatedInGPU: number }).numBytesAllocatedInGPU;
    for (let i = 0; i < 40; i++) {
      const x = tf.fill([16 * 2 ** 20 + i], i); // 64 MB, each of another size
      x.dispose();
      await tf.ones([1]).data();
    }
    expect(allocated()).toBeLessThan(1.5 * 2 ** 30);
  });

  test('a tensor that is too large is refused in one sentence that says what helps', () => {
    const fill = () => tf.fill([2 ** 30], 0);
    expect(fill).toThrow(UserError);
    expect(fill).toThrow(/^a tensor of 4096 MB is too large for this GPU.*--micro-batch-tokens.*--backend wasm/);
  });

  test('reading at once is refused, not answered with nonsense', async () => {
    const x = tf.add(tf.ones([2000]), 1);
    expect(() => x.dataSync()).toThrow(/await tensor.data\(\)/);
  });

  test('what is asked for in one turn is read together, whatever its type and size', async () => {
    const x = tf.range(0, 30_000);
    await x.data();
    const made = [
      ...[tf.mul(x, 2), tf.add(tf.slice(x, 0, 5), 0.5), tf.cast(tf.slice(x, 7, 3), 'int32')],
      ...[tf.greater(tf.slice(x, 0, 4000), 1999), tf.add(tf.slice(x, 0, 9000), 1), tf.add(tf.slice(x, 0, 9000), 2)],
    ];
    const before = counters.submits;
    const read = await Promise.all(made.map((tensor) => tensor.data()));
    const [large, floats, integers, booleans, ...others] = read;
    expect(counters.submits - before).toBeLessThanOrEqual(3); // `large` and one of `others` do not fit in
    expect(large[29_999]).toBe(59_998);
    expect(floats).toEqual(Float32Array.of(0.5, 1.5, 2.5, 3.5, 4.5));
    expect(integers).toEqual(Int32Array.of(7, 8, 9));
    expect(Array.from(booleans)).toEqual(Array.from({ length: 4000 }, (_, i) => Number(i > 1999)));
    expect(others.map((values) => [values[0], values[8999]])).toEqual([
      [1, 9000],
      [2, 9001],
    ]);
  });

  test('a GPU that is lost ends the run in one sentence', async () => {
    const x = tf.add(tf.ones([2000]), 1);
    (tf.backend() as unknown as { device: { destroy(): void } }).device.destroy();
    const error = await x.data().catch((error: Error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect((error as Error).message).toMatch(/^the GPU was lost .*--gradient-checkpointing/);
    expect((error as Error).message).not.toContain('\n');
  });

  describe('in processes of their own', () => {
    const folder = mkdtempSync(join(tmpdir(), 'grpo-webgpu-'));
    afterAll(() => rmSync(folder, { recursive: true }));

    test('twenty steps of learning: the same completions and metrics as on wasm, and the process ends', async () => {
      const [model, data] = [join(folder, 'model'), join(folder, 'data.jsonl')];
      await writeTestModel(model, { bias: 3 });
      writeTestData(data, 12);
      const run = async (backend: string) => {
        const output = join(folder, backend);
        const options =
          '--max-steps 20 --batch-size 2 --num-generations 4 --max-new-tokens 6 --eval-size 0 --kl-coef 0.05 --learning-rate 0.01 --lr-scheduler constant';
        const { code, stderr } = await runProcess([
          ...[...NODE, 'experiment_base/train.ts', '--backend', backend, '--output-dir', output],
          ...['--model-name', model, '--dataset', data, ...options.split(' ')],
        ]);
        expect(code, stderr).toBe(0);
        const steps = jsonLines(join(output, 'metrics.jsonl')).filter((row) => row.grad_norm !== undefined);
        return {
          steps: steps as Record<string, number>[],
          completions: jsonLines(join(output, 'completions.jsonl')),
        };
      };
      const [actual, expected] = [await run('webgpu'), await run('wasm')];
      const texts = (rows: Record<string, unknown>[]) => rows.map(({ completion }) => completion);
      expect(texts(actual.completions)).toEqual(texts(expected.completions));
      expect(expected.steps).toHaveLength(20);
      expect(expected.steps[19].kl).toBeGreaterThan(0.1); // it has moved
      for (const [i, step] of expected.steps.entries()) {
        for (const name of ['loss', 'reward', 'grad_norm', 'entropy', 'kl']) {
          expect(Math.abs(actual.steps[i][name] - step[name]), name).toBeLessThan(1e-3);
        }
      }
    });

    const passes = async (...args: string[]) => {
      const { code, stdout, stderr } = await runProcess(
        [process.execPath, 'node_modules/vitest/vitest.mjs', 'run', ...args],
        { env: { TFJS_BACKEND: 'webgpu', NO_COLOR: '1' } },
      );
      expect(code, stdout + stderr).toBe(0);
      expect(stdout).toMatch(/Tests .*\b\d+ passed/);
    };

    test('logits, greedy text and gradients of all fixtures are those of transformers', async () => {
      const only = '(llama|qwen)\\w+, as transformers computes it (logits|greedy|mean over all.*false)';
      await passes('lib/model/llama_oracles.test.ts', '-t', only);
    });

    test('every kernel is what its operation defines, and so is its gradient', async () => {
      const rooms = readdirSync('lib/ops').filter((room) => existsSync(join('lib/ops', room, 'webgpu_kernel.ts')));
      expect(rooms).toContain('attention');
      await passes(...rooms.map((room) => `lib/ops/${room}/`));
    });
  });
});
