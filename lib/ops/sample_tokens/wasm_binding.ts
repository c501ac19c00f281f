import { onWasm } from '../on_wasm.ts';
import { sampleTokensKernel } from './sample_tokens.ts';

export const sampleTokensOnWasm = [
  onWasm(sampleTokensKernel, ([logits], { run, output, scratch }, { uniforms, temperature }) => {
    const [count, vocabulary] = logits.shape;
    const [tokens, logProbs] = [output([count], 'int32'), output([count])];
    run.sampleTokens({
      logits,
      uniforms: scratch(uniforms),
      sums: scratch(2 * Math.ceil(vocabulary / 64)),
      tokens,
      logProbs,
      count,
      vocabulary,
      temperature: temperature || 1,
      greedy: temperature === 0 ? 1 : 0,
    });
    return [tokens, logProbs];
  }),
];
