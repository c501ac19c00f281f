/** Kernels on several threads: whatever is called in whatever order, the result is that of one thread, to the bit. */
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, test, vi } from 'vitest';
import { initBackend } from '../backend/index.ts';
import { UserError } from '../errors.ts';
import { normals, uniform } from '../random.ts';
import { adamWUpdate } from './adamw/adamw.ts';
import { addOnWasm } from './add/wasm_binding.ts';
import { appendKernel } from './append/append.ts';
import { attention } from './attention/attention.ts';
import { range } from './comparisons.ts';
import { concatOnWasm } from './concat/wasm_binding.ts';
import { matMulOnWasm } from './mat_mul/wasm_binding.ts';
import { gatherRows } from './move_rows/move_rows.ts';
import { createWasm } from './on_wasm.ts';
import { rmsNorm } from './rms_norm/rms_norm.ts';
import { rotate } from './rotary_embedding/rotary_embedding.ts';
import { sampleTokensKernel } from './sample_tokens/sample_tokens.ts';
import { swiGlu } from './swiglu/swiglu.ts';
import { awaitPieces, type Pool, startPool } from './thread_pool.ts';
import { tokenLogProbs } from './token_log_probs/token_log_probs.ts';
import type { WasmBackend } from './wasm_backend.ts';
import { WASM_KERNELS } from './wasm_kernels.ts';
import { compile, instantiate } from './wasm_module.ts';

// Many small pieces, of a size that only the shapes decide on.
vi.mock('./thread_pool.ts', async (original) => ({
  ...(await original<object>()),
  pieces: (count: number, cost: number) => ({
    count,
    grain: Math.max(1, Math.ceil(count / (2 + ((count + cost) % 11)))),
  }),
}));

const pools: Pool[] = [];
let current = 0;

beforeAll(async () => {
  await initBackend('wasm', { kernels: 'off', blas: 'off' });
  const backend = tf.backend() as WasmBackend;
  const [module, memory] = [(await compile(true))!, backend.wasm.wasmMemory!];
  const functions = await instantiate(module, memory, { thread: 0, blas: null });
  for (const threads of [1, 5]) pools.push(await startPool(functions, threads, { module, memory, blas: undefined }));
  expect(pools.map(({ threads }) => threads)).toEqual([1, 5]);
  const pool: Pool = { ...pools[1], run: (...call) => pools[current].run(...call) };
  const wasm = createWasm(backend, pool);
  for (const kernel of [...WASM_KERNELS, addOnWasm, concatOnWasm, matMulOnWasm]) kernel.register(wasm);
  // What no kernel writes is no number.
  const allocate = backend.wasm._malloc;
  backend.wasm._malloc = (bytes) => {
    const address = allocate(bytes);
    backend.wasm.HEAPU8.fill(255, address >>> 0, (address >>> 0) + bytes);
    return address;
  };
});

/** An operation on random numbers, and the gradients of its inputs. */
type Draw = (...key: number[]) => number;
const CALLS: Record<string, (size: Draw, random: (...shape: number[]) => tf.Tensor) => tf.Tensor[]> = {
  adamW: (size, random) => {
    const shape = [size(0), size(1)];
    const moments = { beta1: 0.9, beta2: 0.99, epsilon: 1e-8 };
    const factors = { ...moments, gradientScale: 0.7, decay: 0.9, stepSize: 0.1, rootOfCorrection: 0.5 };
    return adamWUpdate([random(...shape), random(...shape), random(...shape), tf.square(random(...shape))], factors);
  },
  add: (size, random) => [tf.add(random(size(0), size(1)), random(size(0), size(1)))],
  append: (size, random) => {
    const [batch, length, width] = [size(0), size(1), size(2)];
    const past = tf.pad(random(batch, length, width) as tf.Tensor3D, [
      [0, 0],
      [0, size(3) % 3],
      [0, 0],
    ]);
    const [out] = appendKernel.find()!([past as tf.Tensor3D, random(batch, 1 + (size(4) % 2), width) as tf.Tensor3D], {
      length,
      room: 100,
    });
    return [tf.slice(out, [0, 0, 0], [-1, length + 1, -1])];
  },
  attention: (size, random) => {
    const [prompts, group, each, dim, keys] = [
      1 + (size(0) % 3),
      1 + (size(1) % 4),
      1 + (size(2) % 5),
      size(3),
      size(4),
    ];
    const inputs = [
      random(prompts * group * each, dim),
      ...[prompts, prompts, prompts * group, prompts * group].map((n) => random(n, keys, dim)),
    ];
    const op = (q: tf.Tensor, ...[k, v, k2, v2]: tf.Tensor[]) =>
      attention(
        q as tf.Tensor2D,
        [
          { k, v },
          { k: k2, v: v2 },
        ] as Parameters<typeof attention>[1],
      );
    return tf.grads(op)(inputs);
  },
  concat: (size, random) => [tf.concat([random(size(0), size(1), size(2)), random(size(0), size(3), size(2))], 1)],
  matMul: (size, random) => {
    const [m, k, n] = [size(0), 4 * size(1), size(2)];
    const [transposeA, transposeB] = [size(3) % 2 === 0, size(4) % 2 === 0];
    return [
      tf.matMul(
        random(...(transposeA ? [k, m] : [m, k])),
        random(...(transposeB ? [n, k] : [k, n])),
        transposeA,
        transposeB,
      ),
    ];
  },
  moveRows: (size, random) => {
    const [rows, width] = [size(0), size(1)];
    const index = tf.tensor1d(
      range(size(2)).map((i) => (7 * i) % (rows + 1)),
      'int32',
    );
    return gatherRows([random(rows, width) as tf.Tensor2D, index], { holes: true });
  },
  rmsNorm: (size, random) =>
    tf.grads((x, w) => rmsNorm(x as tf.Tensor2D, w, 1e-5))([random(size(0), size(1)), random(size(1))]),
  rotate: (size, random) => {
    const [tokens, heads, half] = [size(0), size(1), size(2)];
    const angles = () => random(tokens, 1, half) as tf.Tensor3D;
    return rotate([random(tokens, heads, 2 * half) as tf.Tensor3D, angles(), angles()], { sign: 1 });
  },
  sampleTokens: (size, random) => {
    const uniforms = Float64Array.from(range(size(0)), (i) => uniform(3, i));
    const logits = random(size(0), 9 * size(1)) as tf.Tensor2D;
    const [tokens, logProbs] = sampleTokensKernel.find()!([logits], { uniforms, temperature: 0.7 });
    return [tf.sqrt(tokens.toFloat()), logProbs]; // a token that nobody has written is −1
  },
  swiGlu: (size, random) => {
    const op = (gate: tf.Tensor, up: tf.Tensor) => swiGlu(gate as tf.Tensor2D, up as tf.Tensor2D);
    return tf.grads(op)([random(size(0), size(1)), random(size(0), size(1))]);
  },
  tokenLogProbs: (size, random) => {
    const [count, width, vocabulary] = [size(0), size(1), size(2)];
    const tokens = Int32Array.from(range(count), (i) => (5 * i) % vocabulary);
    const op = (hidden: tf.Tensor, head: tf.Tensor) =>
      tokenLogProbs(hidden as tf.Tensor2D, head, tokens, { temperature: 0.7 });
    return tf.grads(op)([random(count, width), random(vocabulary, width)]);
  },
};

test('10,000 calls in random order: every number is written, and is that of one thread', async () => {
  const names = Object.keys(CALLS);
  const heap = (x: tf.Tensor) => (tf.backend() as WasmBackend).typedArrayFromHeap(x);
  for (let call = 0; call < 10_000; call++) {
    const name = names[Math.floor(names.length * uniform(1, call))];
    const size: Draw = (...key) => 1 + Math.floor(24 * uniform(2, call, ...key));
    const [one, five] = [0, 1].map((pool) =>
      tf.tidy(() => {
        current = pool;
        let draw = 0;
        const random = (...shape: number[]) => tf.tensor(normals(tf.util.sizeFromShape(shape), 4, call, draw++), shape);
        return CALLS[name](size, random).map((x) => Array.from(heap(x)));
      }),
    );
    expect(five, `${name} in call ${call}`).toEqual(one);
    expect(one.flat().every(Number.isFinite), `${name} in call ${call}`).toBe(true);
  }
});

test('threads that have gone to sleep wake up', async () => {
  for (let i = 0; i < 20; i++) {
    await new Promise((resolve) => setTimeout(resolve, 5));
    const x = tf.ones([40, 40]);
    expect((await tf.sum(tf.add(x, x)).data())[0]).toBe(3200);
  }
});

describe('a thread that has ended', () => {
  test('ends the next call with a sentence', async () => {
    await pools[1].close();
    current = 1;
    expect(() => tf.add(tf.ones([40, 40]), tf.ones([40, 40]))).toThrow(
      /^a thread of the wasm backend has ended \(exit code 1\): continue from the last checkpoint with --resume/,
    );
    current = 0;
  });

  test('in the middle of a call ends that: nobody waits for ever', () => {
    const words = new Int32Array(new SharedArrayBuffer(64));
    const began = performance.now();
    expect(() => awaitPieces(words, 1, 1)).toThrow(UserError);
    expect(performance.now() - began).toBeLessThan(60_000);
  });

  test('a thread that does not start is missing, and nothing else', async () => {
    const called: number[][] = [];
    const functions = { note: (...args: number[]) => void called.push(args) };
    const pool = await startPool(functions, 3, { module: null, memory: {}, blas: '/nowhere/libblas.so' });
    expect(pool.threads).toBe(1);
    expect(pool.missing).toContain('/nowhere/libblas.so');
    pool.run('note', [7], { count: 5, grain: 2 });
    expect(called).toEqual([
      [7, 0, 2],
      [7, 2, 4],
      [7, 4, 5],
    ]);
  });
});
