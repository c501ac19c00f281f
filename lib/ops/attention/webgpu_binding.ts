import type * as tf from '@tensorflow/tfjs';
import { UserError } from '../../errors.ts';
import { onWebGpu } from '../on_webgpu.ts';
import { attentionForward, attentionGradient, type Visible } from './attention.ts';
import { attention, attentionDelta, attentionKeyGrad, attentionQueryGrad, MOST_DIM } from './webgpu_kernel.ts';

export const attentionOnWebGpu = [
  onWebGpu(attentionForward, ([q, ...segments], { run, output }, { visible }) => {
    const [queries, dim] = q.shape;
    if (dim > MOST_DIM) {
      throw new UserError(
        `backend webgpu computes attention with heads of up to ${MOST_DIM} numbers, found ${dim}: use --backend wasm`,
      );
    }
    if (visible.length > 2) throw new Error(`attention over ${visible.length} segments: the kernel has room for two`);
    const [out, normalisers] = [output(q.shape), output([queries, 2])];
    const [k1, v1, k2 = k1, v2 = v1] = segments;
    const one = segmentOf(queries, k1, visible[0], 0);
    const two = visible.length === 2 ? segmentOf(queries, k2, visible[1], one.counts.length) : NO_KEYS;
    run(
      attention,
      {
        ...{ q, k1, v1, k2, v2, out, normalisers, dim, scale: 1 / Math.sqrt(dim) },
        ...{ size1: one.size, share1: one.share, first1: one.first },
        ...{ divisor1: one.divisor, modulus1: one.modulus, slope1: one.slope },
        ...{ size2: two.size, share2: two.share, first2: two.first },
        ...{ divisor2: two.divisor, modulus2: two.modulus, slope2: two.slope },
        counts: [...one.counts, ...two.counts],
      },
      queries,
    );
    return [out, normalisers];
  }),
  onWebGpu(attentionGradient, ([dOut, value, normalisers, q, ...segments], { run, output, scratch }, { visible }) => {
    const [queries, dim] = q.shape;
    const [dQ, stats] = [output(q.shape), scratch([queries, 3])];
    run(attentionDelta, { dOut, value, normalisers, stats, dim }, queries);
    const gradients = visible.flatMap((seen, s) => {
      const [k, v] = segments.slice(2 * s);
      const [dK, dV] = [output(k.shape), output(v.shape)];
      const segment = { ...segmentOf(queries, k, seen, 0), dim, scale: 1 / Math.sqrt(dim) };
      run(attentionQueryGrad, { dOut, q, stats, k, v, dQ, add: s, ...segment }, queries);
      run(attentionKeyGrad, { dOut, q, stats, k, v, dK, dV, ...segment }, k.shape[0] * k.shape[1]);
      return [dK, dV];
    });
    return [dQ, ...gradients];
  }),
];

type Segment = Record<'size' | 'share' | 'first' | 'divisor' | 'modulus' | 'slope', number> & {
  counts: number[];
};

const NO_KEYS: Segment = { size: 0, share: 1, first: 0, divisor: 1, modulus: 0, slope: 0, counts: [] };

/**
 * Keys as the kernels read them: `size` for each batch, which `share` queries share.
 * @param begin - where the segment's counts begin in the list, if it needs one: those of causal rows grow by one
 */
function segmentOf(queries: number, { shape }: tf.TensorInfo, visible: Visible | undefined, begin: number): Segment {
  const [batch, size] = shape;
  const keys = { size, share: queries / batch };
  if (!visible) return { ...NO_KEYS, ...keys };
  const { counts, divisor } = visible;
  const grows = counts.every((count, i) => count === counts[0] + i);
  return grows
    ? { ...keys, first: counts[0], divisor, modulus: counts.length, slope: 1, counts: [] }
    : { ...keys, first: begin, divisor, modulus: counts.length, slope: 0, counts };
}
