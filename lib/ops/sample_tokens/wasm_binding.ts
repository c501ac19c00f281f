import { onWasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { sampleTokensKernel } from './sample_tokens.ts';

export const sampleTokensOnWasm = [
  onWasm(sampleTokensKernel, ([logits], { run, output, scratch, threads }, { uniforms, temperature }) => {
    const [count, vocabulary] = logits.shape;
    const [tokens, logProbs] = [output([count], 'int32'), output([count])];
    run.sampleTokens(
      {
        logits,
        uniforms: scratch(uniforms),
        sums: scratch(threads * 2 * Math.ceil(vocabulary / 64)),
        tokens,
        logProbs,
        vocabulary,
        temperature: temperature || 1,
        greedy: temperature === 0 ? 1 : 0,
      },
      pieces(count, 8 * vocabulary),
    );
    return [tokens, logProbs];
  }),
];
