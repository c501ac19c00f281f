import { onWasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { rotate } from './rotary_embedding.ts';

export const rotaryEmbeddingOnWasm = [
  onWasm(rotate, ([x, cos, sin], { run, output }, { sign }) => {
    const [tokens, heads, dim] = x.shape;
    const y = output(x.shape);
    run.rotaryEmbedding({ x, cos, sin, y, heads, half: dim / 2, sign }, pieces(tokens, 2 * heads * dim));
    return [y];
  }),
];
