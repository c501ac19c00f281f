/** All kernels: what is compiled to lib/dist/kernels.wasm. Each works on float32 at addresses of a memory that it is given. */
export { adamW } from './adamw';
export { attention, attentionGrad } from './attention';
export { rmsNorm, rmsNormGrad } from './rms_norm';
export { rotaryEmbedding } from './rotary';
export { gatherRows, placeBlocks } from './rows';
export { sampleTokens } from './sampling';
export { swiGlu, swiGluGrad } from './swiglu';
export { tokenLogProbs, tokenLogProbsGrad } from './token_log_probs';
