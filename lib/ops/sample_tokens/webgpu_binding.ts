import { onWebGpu } from '../on_webgpu.ts';
import { sampleTokensKernel } from './sample_tokens.ts';
import { sampleTokens } from './webgpu_kernel.ts';

export const sampleTokensOnWebGpu = [
  onWebGpu(sampleTokensKernel, ([logits], { run, output }, { uniforms, temperature }) => {
    const [count, vocabulary] = logits.shape;
    const [tokens, logProbs] = [output([count], 'int32'), output([count])];
    run(
      sampleTokens,
      {
        ...{ logits, uniforms, tokens, logProbs, vocabulary },
        ...{ temperature: temperature || 1, greedy: temperature === 0 ? 1 : 0 },
      },
      count,
    );
    return [tokens, logProbs];
  }),
];
