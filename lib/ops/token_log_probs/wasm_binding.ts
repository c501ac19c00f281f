import { onWasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { tokenLogProbsForward, tokenLogProbsGradient } from './token_log_probs.ts';

export const tokenLogProbsOnWasm = [
  onWasm(tokenLogProbsForward, ([logits, tokens], { run, output }, { temperature }) => {
    const [count, vocabulary] = logits.shape;
    const out = output([2, count]);
    run.tokenLogProbs({ logits, tokens, out, count, vocabulary, temperature }, pieces(count, 8 * vocabulary));
    return [out];
  }),
  onWasm(tokenLogProbsGradient, ([dy, logits, tokens, values], { run, overwritten }, { temperature }) => {
    const [count, vocabulary] = logits.shape;
    run.tokenLogProbsGrad(
      { dy, logits, tokens, values, count, vocabulary, temperature },
      pieces(count, 8 * vocabulary),
    );
    return [overwritten(logits)];
  }),
];
