/**
 * Registers the project's own kernels with the wasm backend: each computes in one pass what one of the
 * operations that are declared as `fusible` defines in plain TensorFlow.js.
 */
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import type { Visible } from './attention/attention.ts';
import { register, registered, replace, sizeOf, type WasmBackend } from './wasm_backend.ts';

/** What `npm install` has built: where it lies as seen from this file, and from what is built of this file. */
const FILES = ['../dist/kernels.wasm', '../kernels.wasm'].map((path) => new URL(path, import.meta.url));

/** The part of it that is used here: Node's types have none without those of browsers. */
const { WebAssembly } = globalThis as unknown as {
  WebAssembly: {
    instantiate(bytes: Uint8Array, imports: object): Promise<{ instance: { exports: Exports } }>;
  };
};
type Run = (...args: number[]) => void;
type Exports = Record<string, Run>;

/** What a kernel's function is given. */
type Call = {
  inputs: tf.TensorInfo[];
  // biome-ignore lint/suspicious/noExplicitAny: each kernel knows its own attributes
  attrs: any;
  backend: WasmBackend;
  /** The address of a tensor's first byte. */
  at(tensor: tf.TensorInfo): number;
  /** A new tensor. */
  output(shape: number[], dtype?: 'float32' | 'int32'): tf.TensorInfo;
  /** The address of memory until the end of the call: for so many floats, or with these values. */
  room(content: number | Int32Array | Float64Array): number;
};

/** Names under which kernels are registered. */
export const KERNELS: string[] = [];

/** @returns whether there are any: if they were not built, or cannot run here, the plain definitions are used */
export async function registerKernels(): Promise<boolean> {
  const { memory } = (tf.backend() as WasmBackend).wasm.asm;
  const module = await readFile(FILES[0])
    .catch(() => readFile(FILES[1]))
    .then((bytes) => WebAssembly.instantiate(bytes, { env: { memory, log: Math.log } }))
    .catch(() => undefined);
  if (!module) return false;
  const run = module.instance.exports;
  registerLayers(run);
  registerAttention(run);
  registerTokens(run);
  replaceConcat(run);
  return true;
}

/** What a layer consists of, but for attention. */
function registerLayers(run: Exports): void {
  kernel('RmsNorm', ({ inputs: [x, weight], attrs, at, output }) => {
    const outputs = [output(x.shape), output([x.shape[0], 1])];
    run.rmsNorm(...[x, weight, ...outputs].map(at), x.shape[0], x.shape[1], attrs.epsilon);
    return outputs;
  });
  kernel('RmsNormGrad', ({ inputs, at, output }) => {
    const [, x, weight] = inputs;
    const outputs = [output(x.shape), output(weight.shape)];
    run.rmsNormGrad(...[...inputs, ...outputs].map(at), x.shape[0], x.shape[1]);
    return outputs;
  });
  kernel('RotaryEmbedding', ({ inputs: [x, cos, sin], attrs, at, output }) => {
    const [tokens, heads, dim] = x.shape;
    const y = output(x.shape);
    run.rotaryEmbedding(...[x, cos, sin, y].map(at), tokens, heads, dim / 2, attrs.sign);
    return [y];
  });
  kernel('SwiGlu', ({ inputs: [gate, up], at, output }) => {
    const y = output(gate.shape);
    run.swiGlu(...[gate, up, y].map(at), sizeOf(gate.shape));
    return [y];
  });
  kernel('SwiGluGrad', ({ inputs: [dy, gate, up], at, output }) => {
    const outputs = [output(gate.shape), output(up.shape)];
    run.swiGluGrad(...[dy, gate, up, ...outputs].map(at), sizeOf(gate.shape));
    return outputs;
  });
  kernel('MoveRows', ({ inputs: [x, rows], at, output }) => {
    const y = output([rows.shape[0], x.shape[1]]);
    run.gatherRows(...[x, rows, y].map(at), rows.shape[0], x.shape[1], x.shape[0]);
    return [y];
  });
}

function registerAttention(run: Exports): void {
  kernel('Attention', (call) => {
    const { inputs, at, output, room } = call;
    const [q, ...segments] = inputs;
    const outputs = [output(q.shape), output([q.shape[0], 2])];
    const [records, scratch] = [segmentRecords(call, q, segments), room(allKeys(segments))];
    run.attention(at(q), records, segments.length / 2, ...outputs.map(at), scratch, ...q.shape, scaleOf(q));
    return outputs;
  });
  kernel('AttentionGrad', (call) => {
    const { inputs, at, output, room, backend } = call;
    const [dy, value, normalisers, q, ...segments] = inputs;
    const dQ = output(q.shape);
    const gradients = segments.map(({ shape }) => output(shape));
    const [records, scratch] = [segmentRecords(call, q, segments, gradients), room(2 * allKeys(segments))];
    for (const gradient of gradients) {
      backend.wasm.HEAPU8.fill(0, at(gradient), at(gradient) + 4 * sizeOf(gradient.shape));
    }
    const [dyAt, qAt, valueAt, normalisersAt, dQAt] = [dy, q, value, normalisers, dQ].map(at);
    const count = segments.length / 2;
    run.attentionGrad(dyAt, qAt, records, count, valueAt, normalisersAt, dQAt, scratch, ...q.shape, scaleOf(q));
    return [dQ, ...gradients];
  });
}

/** What follows the last layer: log-probabilities, sampling, and the optimizer. */
function registerTokens(run: Exports): void {
  kernel('TokenLogProbs', ({ inputs: [logits, tokens], attrs, at, output }) => {
    const y = output([2, logits.shape[0]]);
    run.tokenLogProbs(...[logits, tokens, y].map(at), ...logits.shape, attrs.temperature);
    return [y];
  });
  kernel('TokenLogProbsGrad', ({ inputs, attrs, at, backend }) => {
    const [, logits] = inputs;
    run.tokenLogProbsGrad(...inputs.map(at), ...logits.shape, attrs.temperature);
    backend.incRef(logits.dataId); // it was written over them
    return [{ dataId: logits.dataId, shape: logits.shape, dtype: logits.dtype }];
  });
  kernel('SampleTokens', ({ inputs: [logits], attrs, at, output, room }) => {
    const [count, vocabulary] = logits.shape;
    const outputs = [output([count], 'int32'), output([count])];
    const [uniforms, sums] = [room(attrs.uniforms), room(2 * Math.ceil(vocabulary / 64))];
    const { temperature } = attrs;
    const drawn = [count, vocabulary, temperature || 1, temperature === 0 ? 1 : 0];
    run.sampleTokens(at(logits), uniforms, sums, ...outputs.map(at), ...drawn);
    return outputs;
  });
  kernel('AdamW', ({ inputs, attrs, at, output }) => {
    const { beta1, beta2, decay, stepSize, rootOfCorrection, epsilon } = attrs;
    const [{ shape }] = inputs;
    const outputs = [output(shape), output(shape), output(shape)];
    const factors = [beta1, 1 - beta1, beta2, 1 - beta2, decay, stepSize, rootOfCorrection, epsilon];
    run.adamW(...[...inputs, ...outputs].map(at), sizeOf(shape), ...factors);
    return outputs;
  });
}

/** The backend's own concatenation walks through JavaScript for every block. */
function replaceConcat(run: Exports): void {
  const concat = registered('Concat');
  replace('Concat', (call) => {
    const { inputs, attrs, backend } = call;
    const parts = Object.values(inputs);
    const { shape, dtype } = parts[0];
    const axis = tf.util.parseAxisParam(attrs.axis as number, shape)[0];
    if (dtype !== 'float32' && dtype !== 'int32') return concat(call); // not four bytes an element
    const shapes = parts.map((part) => part.shape);
    tf.backend_util.assertParamsConsistent(shapes, axis);
    const out = backend.makeOutput(tf.backend_util.computeOutShape(shapes, axis), dtype);
    const [count, stride] = [sizeOf(shape.slice(0, axis)), sizeOf(out.shape.slice(axis))];
    let target = addressOf(backend, out);
    for (const part of parts) {
      const width = sizeOf(part.shape.slice(axis));
      run.placeBlocks(addressOf(backend, part), target, count, width, stride);
      target += 4 * width;
    }
    return out;
  });
}

/** Addresses of more than 2 GB come as negative numbers. */
const addressOf = (backend: WasmBackend, { dataId }: tf.TensorInfo): number =>
  (backend.dataIdMap.get(dataId).memoryOffset ?? 0) >>> 0;

function kernel(name: string, compute: (call: Call) => tf.TensorInfo[]): void {
  KERNELS.push(name);
  register(name, ({ inputs, attrs, backend }) => {
    const { wasm } = backend;
    const taken: number[] = [];
    const room: Call['room'] = (content) => {
      const bytes = typeof content === 'number' ? 4 * content : content.byteLength;
      const address = wasm._malloc(Math.max(16, bytes)) >>> 0;
      taken.push(address);
      if (typeof content !== 'number')
        wasm.HEAPU8.set(new Uint8Array(content.buffer, content.byteOffset, bytes), address);
      return address;
    };
    try {
      return compute({
        inputs: Object.values(inputs),
        attrs,
        backend,
        at: (tensor) => addressOf(backend, tensor),
        output: (shape, dtype = 'float32') => backend.makeOutput(shape, dtype),
        room,
      });
    } finally {
      for (const address of taken) wasm._free(address);
    }
  });
}

/** The records that the attention kernels read: see `Segment` in attention/wasm_kernel.ts. */
function segmentRecords(
  { attrs, at, room }: Call,
  q: tf.TensorInfo,
  segments: tf.TensorInfo[],
  gradients?: tf.TensorInfo[],
): number {
  const records = (attrs.visible as (Visible | undefined)[]).flatMap((visible, i) => {
    const [k, v] = segments.slice(2 * i);
    const [dK, dV] = gradients?.slice(2 * i, 2 * i + 2).map(at) ?? [0, 0];
    const counts = visible ? room(Int32Array.from(visible.counts)) : 0;
    const queriesPerBatch = q.shape[0] / k.shape[0];
    return [
      at(k),
      at(v),
      dK,
      dV,
      k.shape[1],
      queriesPerBatch,
      counts,
      visible?.divisor ?? 1,
      visible?.counts.length ?? 1,
    ];
  });
  return room(Int32Array.from(records));
}

/** Keys of all segments, rounded up to whole fours. */
const allKeys = (segments: tf.TensorInfo[]): number => segments.reduce((sum, { shape }) => sum + shape[1] + 3, 0);

const scaleOf = (q: tf.TensorInfo): number => 1 / Math.sqrt(q.shape[1]);
