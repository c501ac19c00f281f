import { onWebGpu } from '../on_webgpu.ts';
import { tokenLogProbsForward, tokenLogProbsGradient } from './token_log_probs.ts';
import { tokenLogProbs, tokenLogProbsGrad } from './webgpu_kernel.ts';

export const tokenLogProbsOnWebGpu = [
  onWebGpu(tokenLogProbsForward, ([logits, tokens], { run, output }, { temperature }) => {
    const [count, vocabulary] = logits.shape;
    const out = output([2, count]);
    run(tokenLogProbs, { logits, tokens, out, count, vocabulary, temperature }, count);
    return [out];
  }),
  onWebGpu(tokenLogProbsGradient, ([dy, logits, tokens, values], { run, overwritten }, { temperature }) => {
    const [count, vocabulary] = logits.shape;
    run(tokenLogProbsGrad, { dy, logits, tokens, values, count, vocabulary, temperature }, count);
    return [overwritten(logits)];
  }),
];
