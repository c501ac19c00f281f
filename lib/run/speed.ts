import { sum } from '../statistics.ts';
import type { TrainingState } from '../training/state.ts';

type Completions = { completion: { length: number } }[];

/**
 * Adds the tokens of a step that has just ended to those of the run, and says how fast they came.
 * @param completions - of the step
 * @param times - when it began, and when it had sampled: milliseconds, as `performance.now()` gives them. `inVain` are
 *   completions that were sampled, and not trained on
 * @returns under the names of metrics.jsonl: tokens since the start of the run, seconds, and tokens a second of the whole
 *   step, of sampling and of training
 */
export function measureSpeed(
  { counters }: Pick<TrainingState, 'counters'>,
  completions: Completions,
  { began, sampled, inVain = [] }: { began: number; sampled: number; inVain?: Completions },
): Record<string, number> {
  const ended = performance.now();
  const [trained, lost] = [completions, inVain].map((some) => sum(some.map(({ completion }) => completion.length)));
  const tokens = trained + lost;
  counters.tokens += tokens;
  return {
    num_tokens: counters.tokens,
    step_time: (ended - began) / 1000,
    tokens_per_second: (1000 * tokens) / (ended - began),
    rollout_tokens_per_second: (1000 * tokens) / (sampled - began),
    train_tokens_per_second: (1000 * trained) / (ended - sampled),
  };
}
