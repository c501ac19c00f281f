/** Everything that an experiment may import. Nothing in lib/ knows of rewards, advantages or experiments. */
export * from './backend/index.ts';
export * from './generation/generate.ts';
export * from './generation/sampling.ts';
export * from './model/checkpoint.ts';
export * from './model/config.ts';
export * from './model/llama.ts';
export * from './model/ops.ts';
export * from './model/safetensors.ts';
export * from './model/tokenizer.ts';
export * from './run/errors.ts';
export * from './run/random.ts';
export * from './training/adamw.ts';
export * from './training/gradients.ts';
export * from './training/schedule.ts';
export * from './training/score.ts';
