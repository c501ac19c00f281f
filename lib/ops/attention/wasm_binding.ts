import type * as tf from '@tensorflow/tfjs';
import { onWasm, type Wasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { attentionForward, attentionGradient, type Visible } from './attention.ts';

export const attentionOnWasm = [
  onWasm(attentionForward, ([q, ...segments], { run, output, scratch, records, threads }, { visible }) => {
    const [queries, dim] = q.shape;
    const [out, normalisers] = [output(q.shape), output([queries, 2])];
    const scratchSize = allKeys(segments);
    run.attention(
      {
        q,
        segments: records('Segment', segmentRecords(queries, segments, visible, scratch)),
        segmentCount: visible.length,
        out,
        normalisers,
        scratch: scratch(threads * scratchSize),
        scratchSize,
        dim,
        scale: 1 / Math.sqrt(dim),
      },
      pieces(queries, scratchSize * dim),
    );
    return [out, normalisers];
  }),
  onWasm(
    attentionGradient,
    ([dOut, out, normalisers, q, ...segments], { run, output, zeros, scratch, records, threads }, { visible }) => {
      const [queries, dim] = q.shape;
      const dQ = output(q.shape);
      const gradients = segments.map(({ shape }) => zeros(shape));
      if (queries === 0) return [dQ, ...gradients];
      const scratchSize = 2 * allKeys(segments);
      // Keys that several queries share gather the gradients of all of them: these must stay with one thread.
      const share = segments.reduce((share, { shape: [batch] }) => leastCommonMultiple(share, queries / batch), 1);
      run.attentionGrad(
        {
          dOut,
          q,
          segments: records('Segment', segmentRecords(queries, segments, visible, scratch, gradients)),
          segmentCount: visible.length,
          out,
          normalisers,
          dQ,
          scratch: scratch(threads * scratchSize),
          scratchSize,
          share,
          dim,
          scale: 1 / Math.sqrt(dim),
        },
        pieces(queries / share, share * scratchSize * dim),
      );
      return [dQ, ...gradients];
    },
  ),
];

/** K₁, V₁, K₂, V₂, … (and their gradients, in the same order) as the kernels read them. */
const segmentRecords = (
  queries: number,
  segments: tf.TensorInfo[],
  visible: (Visible | undefined)[],
  scratch: Wasm['scratch'],
  gradients?: tf.TensorInfo[],
) =>
  visible.map((visible, i) => {
    const [k, v] = segments.slice(2 * i);
    const [dK, dV] = gradients?.slice(2 * i) ?? [0, 0];
    const [batch, length] = k.shape;
    return {
      k,
      v,
      dK,
      dV,
      length,
      queriesPerBatch: queries / batch,
      visible: visible ? scratch(Int32Array.from(visible.counts)) : 0,
      divisor: visible?.divisor ?? 1,
      modulus: visible?.counts.length ?? 1,
    };
  });

function leastCommonMultiple(a: number, b: number): number {
  let multiple = a;
  while (multiple % b !== 0) multiple += a;
  return multiple;
}

/** Keys of all segments, rounded up to whole fours. */
const allKeys = (segments: tf.TensorInfo[]): number => segments.reduce((sum, { shape }) => sum + shape[1] + 3, 0);
