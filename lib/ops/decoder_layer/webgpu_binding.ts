import type * as tf from '@tensorflow/tfjs';
import { withRoom } from '../append/webgpu_binding.ts';
import { SMALL_TILE } from '../mat_mul/webgpu_kernel.ts';
import { onWebGpu } from '../on_webgpu.ts';
import { rmsNorm } from '../rms_norm/webgpu_kernel.ts';
import { type LayerTensors, layerKernel } from './decoder_layer.ts';
import { addProjected, attendOnce, gatePairs, placeHeads, project } from './webgpu_kernel.ts';

/** Nine calls: norm, q k v, their heads, attention, o; norm, gate and up, their product, down. */
export const decoderLayerOnWebGpu = [
  onWebGpu(layerKernel, (inputs, webgpu, { names, epsilon, length, room, slots, group, prompts }) => {
    const { run, scratch, overwritten } = webgpu;
    const tensors = Object.fromEntries(names.map((name, i) => [name, inputs[i]])) as LayerTensors<tf.TensorInfo>;
    const { x, cos, sin, q, k, v, o, gate, up, down } = tensors;
    const { prefixK, prefixV, qNorm, kNorm, qBias, kBias, vBias, oBias, gateBias, upBias, downBias } = tensors;
    const [rows, width] = x.shape;
    const dim = 2 * cos.shape[2];
    const [heads, kvHeads] = [q.shape[0] / dim, k.shape[0] / dim];
    const tilesDown = Math.ceil(rows / SMALL_TILE);
    const tilesAcross = (matrices: tf.TensorInfo[]) =>
      matrices.reduce((sum, { shape }) => sum + Math.ceil(shape[0] / SMALL_TILE), 0);

    const norm = (weight: tf.TensorInfo, y: tf.TensorInfo) =>
      run(rmsNorm, { x, weight, y, inverse: scratch([rows, 1]), width, epsilon }, rows);
    /** x times two or three matrices, side by side. */
    const projected = (x: tf.TensorInfo, matrices: tf.TensorInfo[], biases: (tf.TensorInfo | undefined)[]) => {
      const [w1, w2, w3 = w2] = matrices;
      const [n1, n2, n3 = 0] = matrices.map(({ shape }) => shape[0]);
      const [b1 = x, b2 = x, b3 = x] = biases; // what is not there is not read
      const y = scratch([rows, n1 + n2 + n3]);
      const across = tilesAcross(matrices);
      const numbers = { m: rows, k: x.shape[1], n1, n2, n3, across, biased: biases[0] ? 1 : 0 };
      run(project, { x, w1, w2, w3, b1, b2, b3, y, ...numbers }, tilesDown * across);
      return y;
    };
    /** Adds x times a matrix to the residual stream. */
    const add = (from: tf.TensorInfo, w1: tf.TensorInfo, bias: tf.TensorInfo | undefined) => {
      const across = tilesAcross([w1]);
      const numbers = { m: rows, k: from.shape[1], n1: width, across, biased: bias ? 1 : 0 };
      run(addProjected, { x: from, w1, b1: bias ?? from, y: x, ...numbers }, tilesDown * across);
    };

    const [keys, values] = [tensors.pastK, tensors.pastV].map((past) =>
      withRoom(past, webgpu, { length, filled: length + 1, room }),
    );
    const slotCount = keys.shape[0] / kvHeads;
    const places = { heads, kvHeads, dim, slotCount, room: keys.shape[1] };
    const normed = scratch(x.shape);
    norm(tensors.inputNorm, normed);
    const qkv = projected(normed, [q, k, v], [qBias, kBias, vBias]);
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
        ...{ ...places, rows, group, length: length + 1, prefixLength: prefixK?.shape[1] ?? 0 },
        ...{ padded: prompts ? 1 : 0, scale: 1 / Math.sqrt(dim), lists: [...slots, ...(prompts ?? [])] },
      },
      rows * heads,
    );
    add(mixed, o, oBias);
    norm(tensors.outputNorm, normed);
    const gateUp = projected(normed, [gate, up], [gateBias, upBias]);
    const [inner, count] = [gate.shape[0], rows * gate.shape[0]];
    const gated = scratch([rows, inner]);
    run(gatePairs, { gateUp, y: gated, count, width: inner }, Math.ceil(count / gatePairs.threads));
    add(gated, down, downBias);
    return [overwritten(x), keys, values];
  }),
];
