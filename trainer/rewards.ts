/** Reward functions of one's own: what they are given, and what is asked of their answers; and reward models. */
import { existsSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import type { ChatMessage } from '../lib/checkpoint/chat_template.ts';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import type { Call } from '../lib/environments/conversation.ts';
import { UserError } from '../lib/errors.ts';
import { shown } from '../lib/text.ts';
import { judgedSequence, scoresOf } from '../lib/training/scores.ts';

/** A text that is continued, or a conversation that the chat template lays out. */
export type Prompt = string | ChatMessage[];

/** What a reward function is given: a list each, with an entry for every completion; other columns of the data set too. */
export type RewardInputs = {
  prompts: Prompt[];
  /** texts; or, of conversations, the message that was added, as in TRL */
  completions: (string | ChatMessage[])[];
  /** token ids, that of the end included */
  completionIds: number[][];
  /** what was called, and what came of it; without tools nothing */
  calls: Call[][];
  [column: string]: unknown[];
};

/** The text of a completion, be it one or a message. */
export const textOf = (completion: RewardInputs['completions'][number]): string =>
  typeof completion === 'string' ? completion : completion[0].content;

/** Rewards of completions, in their order; null for those that it has nothing to say of. */
export type RewardFunction = (inputs: RewardInputs) => (number | null)[] | Promise<(number | null)[]>;

/** A reward model as a reward function, which is called as the model is. */
export type RewardModel = RewardFunction & { model: string; load: () => Promise<void> };

/**
 * @param name - a folder in the Hugging Face layout, or `owner/name[@revision]` on the hub: a model with one score on top,
 *   which reads conversations through its own chat template
 * @param options.microBatchTokens - tokens in memory at once
 * @returns a function that must be loaded before it is called; `load` throws a UserError if there is no such model
 */
export function rewardModel(name: string, { microBatchTokens = 8192 }: { microBatchTokens?: number }): RewardModel {
  let judge: Awaited<ReturnType<typeof loadWithTokenizer>>;
  const score: RewardFunction = ({ prompts, completions }) => {
    const sequences = completions.map((completion, i) => {
      return judgedSequence(judge.tokenizer, prompts[i], textOf(completion));
    });
    return scoresOf(judge.model, sequences, { microBatchTokens });
  };
  const load = async () => {
    judge = await loadWithTokenizer(name, { head: 'score' });
  };
  const short = basename(existsSync(name) ? resolve(name) : name.replace(/@[^@]*$/, ''));
  // A run's model is called final_model as any other's: its run says which one it is.
  const called = short === 'final_model' ? name : short;
  return Object.assign(Object.defineProperty(score, 'name', { value: called }), { model: name, load });
}

/**
 * What a function is called in metrics and messages.
 * @throws {UserError} if it has no name, or two have the same
 */
export function namesOf(functions: RewardFunction[]): string[] {
  if (functions.length === 0) throw new UserError('rewardFuncs: expected at least one function, found none');
  const names = functions.map((reward, i) => {
    if (typeof reward !== 'function')
      throw new UserError(
        `rewardFuncs[${i}] must be a function, or the name of a reward model, found ${shown(reward)}`,
      );
    return reward.name || `reward_${i}`;
  });
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  if (twice !== undefined) throw new UserError(`rewardFuncs: two are called ${twice}: give one of them another name`);
  return names;
}

/**
 * Asks all reward functions, side by side.
 * @param options.weights - of the functions, in their order
 * @param options.timeout - seconds that each may take
 * @returns by completion: the weighted sum, and what each function said
 * @throws {UserError} naming the function, and the completion, if it throws, takes too long, or gives anything but a finite
 *   number or null for each completion, or if none of them has a reward for one
 */
export async function callRewards(
  functions: RewardFunction[],
  inputs: RewardInputs,
  { weights, timeout }: { weights: number[]; timeout: number },
): Promise<{ reward: number; rewards: (number | null)[] }[]> {
  const names = namesOf(functions);
  const count = inputs.completions.length;
  // What is trained on stays as it was sampled, whatever a function does with its inputs.
  const copy = (): RewardInputs => ({ ...inputs, completionIds: inputs.completionIds.map((ids) => [...ids]) });
  const given = await Promise.all(functions.map((reward, f) => ask(reward, names[f], copy(), timeout)));
  for (const [f, values] of given.entries()) checkValues(names[f], values, count);
  return inputs.completions.map((completion, i) => {
    const rewards = given.map((values) => values[i]);
    if (rewards.every((reward) => reward === null)) {
      throw new UserError(`no reward function has a reward for ${describe(inputs, i)}: one must return a number`);
    }
    const reward = rewards.reduce<number>((sum, value, f) => sum + weights[f] * (value ?? 0), 0);
    if (Number.isFinite(reward)) return { reward, rewards };
    throw new UserError(`the weighted sum of the rewards is ${reward} for ${shown(completion)}: lower rewardWeights`);
  });
}

async function ask(
  reward: RewardFunction,
  name: string,
  inputs: RewardInputs,
  timeout: number,
): Promise<(number | null)[]> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    const message = `the reward function ${name} has not answered within ${timeout} seconds: raise rewardTimeout, or make it faster`;
    timer = setTimeout(() => reject(new UserError(message)), 1000 * timeout);
  });
  try {
    return await Promise.race([late, reward(inputs)]);
  } catch (error) {
    if (error instanceof UserError) throw error;
    const said = error instanceof Error ? error.message : shown(error);
    const given = Object.keys(inputs).join(', ');
    throw new UserError(`the reward function ${name} threw: ${said}${placeOf(error)}; it was given ${given}`, {
      cause: error,
    });
  } finally {
    clearTimeout(timer);
  }
}

function checkValues(name: string, values: unknown, count: number): void {
  if (!Array.isArray(values)) {
    throw new UserError(
      `the reward function ${name} must return a list with a number for each of the ${count} completions, found ${shown(values ?? null)}`,
    );
  }
  if (values.length !== count) {
    throw new UserError(
      `the reward function ${name} must return ${count} rewards, one a completion, found ${values.length}`,
    );
  }
  const wrong = values.findIndex((value) => value !== null && !(typeof value === 'number' && Number.isFinite(value)));
  if (wrong < 0) return;
  const value = values[wrong];
  const found = typeof value === 'number' || value === undefined ? String(value) : shown(value);
  throw new UserError(
    `the reward function ${name} must return finite numbers (or null for a completion that it leaves out), found ${found} for completion ${wrong}`,
  );
}

/** Where an error was thrown, for whoever has to look there. */
function placeOf(error: unknown): string {
  const stack = error instanceof Error ? (error.stack ?? '') : '';
  const [, place] = /\n\s+at (?:.*\()?((?:file:|\/|\w:).*?:\d+:\d+)\)?/.exec(stack) ?? [];
  return place === undefined ? '' : ` (${place.replace('file://', '')})`;
}

/** Which completion is meant. */
const describe = ({ prompts }: RewardInputs, i: number): string =>
  `completion ${i}, of the prompt ${shown(prompts[i])}`;
