import type { Model } from '../model/model.ts';
import type { AdamWState } from './adamw.ts';

/** Policy, optimizer, and whatever is counted. Random numbers need no state: they depend on seed and step alone. */
export type TrainingState = {
  model: Model;
  optimizer: AdamWState;
  counters: Record<string, number>;
  /** What the user is to be told at the end of the step. */
  notes?: string[];
};
