/** What the page and the worker that trains say to each other. */
import type { ToldGroup, ToldRow } from '../watch/told.ts';

/** What may change from step to step, by the names of the options of experiment_base. */
export type Settings = {
  batchSize: number;
  numGenerations: number;
  numIterations: number;
  learningRate: number;
  clipRange: number;
  klCoef: number;
};

/** What a run starts with, and keeps. */
export type Start = {
  backend: 'wasm' | 'webgpu';
  algorithm: Algorithm;
  threads: number;
  seed: number;
  maxSteps: number;
  /** held-out questions that are asked from time to time */
  evalSize: number;
};

/** A training after a step, to go on from: the files of a checkpoint, as those of a run are, by their names. */
export type Checkpoint = { step: number; files: Map<string, Uint8Array> };

export const ALGORITHMS = { experiment_base: 'GRPO', experiment_drgrpo: 'Dr. GRPO' } as const;
export type Algorithm = keyof typeof ALGORITHMS;

/** From the page. What needs the model waits for the step under way. */
export type Order =
  | ({ order: 'start'; from?: Checkpoint | undefined } & Start & Settings)
  | ({ order: 'change' } & Settings)
  | { order: 'step' }
  | { order: 'go' }
  | { order: 'pause' }
  | { order: 'keep' }
  | { order: 'ask'; question: string }
  | { order: 'save' }
  | { order: 'load'; weights: Uint8Array };

/**
 * To the page. `mistake`: a sentence for the user; whatever was going on is paused. `failed`: the same, of a worker that could
 * not start and does nothing any more; `isDamaged`: because of the checkpoint that it was to go on from.
 */
export type News =
  | { news: 'ready'; backend: string }
  | { news: 'evaluated'; step: number; accuracy: number }
  | { news: 'step'; step: number; metrics: Record<string, number>; group: ToldGroup }
  | { news: 'paused'; finished: boolean }
  | { news: 'kept'; given: Start & Settings; checkpoint: Checkpoint }
  | { news: 'answer'; question: string; row: ToldRow }
  | { news: 'saved'; weights: Uint8Array }
  | { news: 'loaded' }
  | { news: 'mistake'; text: string }
  | { news: 'failed'; text: string; isDamaged: boolean };

/** To the worker that has the user's reward, and from it: a number a completion, or what is wrong. */
export type Graded = { question: string; answer: string; text: string };
export type Rewards = { rewards: number[] } | { mistake: string };
