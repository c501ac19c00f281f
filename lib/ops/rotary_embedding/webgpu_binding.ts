import { onWebGpu } from '../on_webgpu.ts';
import { rotate } from './rotary_embedding.ts';
import { rotaryEmbedding } from './webgpu_kernel.ts';

export const rotaryEmbeddingOnWebGpu = [
  onWebGpu(rotate, ([x, cosines, sines], { run, output }, { sign }) => {
    const [tokens, heads, dim] = x.shape;
    const [y, pairs] = [output(x.shape), (tokens * heads * dim) / 2];
    run(
      rotaryEmbedding,
      { x, cosines, sines, y, pairs, heads, halfDim: dim / 2, turn: sign },
      Math.ceil(pairs / rotaryEmbedding.threads),
    );
    return [y];
  }),
];
