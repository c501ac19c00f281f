/** What `import { GRPOTrainer } from 'grpo-ts'` brings. */
export type { GRPOConfig, LossType } from './config.ts';
export type { Dataset, Row } from './dataset.ts';
export { GRPOTrainer, type GRPOTrainerOptions } from './grpo_trainer.ts';
export type { Prompt, RewardFunction, RewardInputs } from './rewards.ts';
