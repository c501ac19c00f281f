/** What `import { GRPOTrainer } from 'grpo-ts'` brings. */

export type { Call } from '../lib/environments/conversation.ts';
export type { Task, TaskProblem } from '../lib/environments/task.ts';
export type { Tool, ToolResult } from '../lib/environments/tool.ts';
export type { GRPOConfig, LossType } from './config.ts';
export type { Dataset, Row } from './dataset.ts';
export {
  type Callbacks,
  type Environment,
  GRPOTrainer,
  type GRPOTrainerOptions,
  type PeftConfig,
} from './grpo_trainer.ts';
export { type Prompt, type RewardFunction, type RewardInputs, textOf } from './rewards.ts';
