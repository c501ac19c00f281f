/** Everything that an experiment may import. No line of an algorithm is in lib/. */
export * from './backend/index.ts';
export * from './backend/threads.ts';
export * from './distributed/communicator.ts';
export * from './distributed/flatten.ts';
export * from './distributed/rank_limits.ts';
export * from './distributed/ranks.ts';
export * from './distributed/state.ts';
export * from './generation/generate.ts';
export * from './model/checkpoint.ts';
export * from './model/config.ts';
export * from './model/end_tokens.ts';
export * from './model/hub.ts';
export * from './model/llama.ts';
export * from './model/lora.ts';
export * from './model/pretrained.ts';
export * from './model/safetensors.ts';
export * from './model/tokenizer.ts';
export { attention, type KeySegment } from './ops/attention/attention.ts';
export { linear } from './ops/linear/linear.ts';
export { moveRows, type RowIndex } from './ops/move_rows/move_rows.ts';
export { recomputed } from './ops/recomputed.ts';
export { rmsNorm } from './ops/rms_norm/rms_norm.ts';
export { rotaryEmbedding } from './ops/rotary_embedding/rotary_embedding.ts';
export {
  logSoftmax,
  type SamplingOptions,
  sampleToken,
  sampleTokens,
  truncate,
} from './ops/sample_tokens/sample_tokens.ts';
export { swiGlu } from './ops/swiglu/swiglu.ts';
export { tokenLogProbs } from './ops/token_log_probs/token_log_probs.ts';
export * from './run/answers.ts';
export * from './run/command.ts';
export * from './run/curves.ts';
export * from './run/dataset.ts';
export * from './run/errors.ts';
export * from './run/evaluation.ts';
export * from './run/final_model.ts';
export * from './run/find_run.ts';
export * from './run/interrupt.ts';
export * from './run/json_lines.ts';
export * from './run/main.ts';
export * from './run/options.ts';
export * from './run/progress.ts';
export * from './run/random.ts';
export * from './run/run.ts';
export * from './run/run_folder.ts';
export * from './run/speed.ts';
export * from './run/start.ts';
export * from './run/statistics.ts';
export * from './run/training_state.ts';
export * from './tools/calculator.ts';
export * from './tools/corpus.ts';
export * from './tools/search.ts';
export * from './tools/tool.ts';
export * from './training/adamw.ts';
export * from './training/gradients.ts';
export * from './training/optimizer_step.ts';
export * from './training/schedule.ts';
export * from './training/score.ts';
export * from './training/state.ts';
