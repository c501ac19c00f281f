import type * as tf from '@tensorflow/tfjs';
import { withRoom } from '../append/webgpu_binding.ts';
import { SMALL_TILE } from '../mat_mul/webgpu_kernel.ts';
import { onWebGpu, type WebGpu } from '../on_webgpu.ts';
import { rmsNorm } from '../rms_norm/webgpu_kernel.ts';
import { type LayerTensors, layerKernel } from './decoder_layer.ts';
import { addProjected, attendOnce, gatePairs, placeHeads, project } from './webgpu_kernel.ts';

/** Nine calls: norm, q k v, their heads, attention, o; norm, gate and up, their product, down. */
export const decoderLayerOnWebGpu = [
  onWebGpu(layerKernel, (inputs, webgpu, { names, epsilon, length, room, slots, group, prompts }) => {
    const { run, repeat, scratch, overwritten } = webgpu;
    const tensors = Object.fromEntries(names.map((name, i) => [name, inputs[i]])) as LayerTensors<tf.TensorInfo>;
    const { x, cos, sin, q, k, v, o, gate, up, down } = tensors;
    const { prefixK, prefixV, qNorm, kNorm, qBias, kBias, vBias, oBias, gateBias, upBias, downBias } = tensors;
    const [rows, width] = x.shape;
    const dim = 2 * cos.shape[2];
    const [heads, kvHeads] = [q.shape[0] / dim, k.shape[0] / dim];
    const space = { length, filled: length + 1, room };
    const keys = withRoom(tensors.pastK, webgpu, space);
    const values = withRoom(tensors.pastV, webgpu, space);
    const places = { heads, kvHeads, dim, slotCount: keys.shape[0] / kvHeads, room: keys.shape[1] };

    const lists = prompts ? [...slots, ...prompts] : slots;
    const [prefixLength, padded] = [prefixK?.shape[1] ?? 0, prompts ? 1 : 0];
    const sizes = [...x.shape, gate.shape[0], group, prefixLength, padded, epsilon, ...Object.values(places)];
    const key = `layer ${[...sizes, ...names]}`;
    repeat(key, [...inputs, keys, values], { length, slots, lists }, () => {
      const [normed, inverse] = [scratch(x.shape), scratch([rows, 1])];
      run(rmsNorm, { x, weight: tensors.inputNorm, y: normed, inverse, width, epsilon }, rows);
      const qkv = projected(normed, [q, k, v], [qBias, kBias, vBias], webgpu);
      run(
        placeHeads,
        {
          ...{ cosines: cos, sines: sin, qNorm: qNorm ?? cos, kNorm: kNorm ?? cos, qkv, keys, values },
          ...{ ...places, length, normed: qNorm ? 1 : 0, epsilon, slots },
        },
        rows * (heads + 2 * kvHeads),
      );
      const mixed = scratch([rows, heads * dim]);
      run(
        attendOnce,
        {
          ...{ qkv, prefixKeys: prefixK ?? cos, prefixValues: prefixV ?? cos, keys, values, out: mixed },
          ...{ ...places, rows, group, length, prefixLength },
          ...{ padded, scale: 1 / Math.sqrt(dim), lists },
        },
        rows * heads,
      );
      add(x, mixed, { matrix: o, bias: oBias }, webgpu);
      run(rmsNorm, { x, weight: tensors.outputNorm, y: normed, inverse, width, epsilon }, rows);
      const gateUp = projected(normed, [gate, up], [gateBias, upBias], webgpu);
      const [inner, count] = [gate.shape[0], rows * gate.shape[0]];
      const gated = scratch([rows, inner]);
      run(gatePairs, { gateUp, y: gated, count, width: inner }, Math.ceil(count / gatePairs.threads));
      add(x, gated, { matrix: down, bias: downBias }, webgpu);
    });
    return [overwritten(x), keys, values];
  }),
];

type Bias = tf.TensorInfo | undefined;

/** x times two or three matrices, side by side. */
function projected(
  x: tf.TensorInfo,
  [w1, w2, w3 = w2]: tf.TensorInfo[],
  [b1 = x, b2 = x, b3 = x]: Bias[], // what is not there is not read
  { run, scratch }: WebGpu,
): tf.TensorInfo {
  const [m, k] = x.shape;
  const [n1, n2, n3] = [w1.shape[0], w2.shape[0], w3 === w2 ? 0 : w3.shape[0]];
  const across = tilesOf(n1) + tilesOf(n2) + tilesOf(n3);
  const y = scratch([m, n1 + n2 + n3]);
  const numbers = { m, k, n1, n2, n3, across, biased: b1 === x ? 0 : 1 };
  run(project, { x, w1, w2, w3, b1, b2, b3, y, ...numbers }, tilesOf(m) * across);
  return y;
}

/** Adds x times a matrix to the residual stream. */
function add(
  stream: tf.TensorInfo,
  x: tf.TensorInfo,
  { matrix, bias }: { matrix: tf.TensorInfo; bias: Bias },
  { run }: WebGpu,
): void {
  const [m, k] = x.shape;
  const across = tilesOf(matrix.shape[0]);
  const numbers = { m, k, n1: matrix.shape[0], across, biased: bias ? 1 : 0 };
  run(addProjected, { x, w1: matrix, b1: bias ?? x, y: stream, ...numbers }, tilesOf(m) * across);
}

const tilesOf = (size: number) => Math.ceil(size / SMALL_TILE);
