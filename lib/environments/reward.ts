import { UserError } from '../errors.ts';
import { shown } from '../text.ts';

/**
 * A reward that training can learn from.
 * @throws {UserError} for any other, naming the question: whoever wrote the reward must mend it
 */
export function finiteReward(reward: number, { question }: { question: string }): number {
  if (Number.isFinite(reward)) return reward;
  throw new UserError(`a reward must be a finite number, found ${reward} for a completion of ${shown(question)}`);
}
