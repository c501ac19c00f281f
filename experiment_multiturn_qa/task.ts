/**
 * The task of this experiment: what the policy is asked, and what is rewarded. What is learnt from that is in train.ts.
 *
 * Differs from experiment_multiturn_tool/task.ts in: isRight, callMetrics.
 */
import type { Tokenizer } from '../lib/checkpoint/tokenizer.ts';
import { rewardWeightsOption } from '../lib/cli/options.ts';
import { exactMatch, type Verdict } from '../lib/environments/answers.ts';
import { answerOf, type Call, type Conversation, describeTools } from '../lib/environments/conversation.ts';
import type { Question as Problem } from '../lib/environments/corpus.ts';
import { finiteReward } from '../lib/environments/reward.ts';
import type { Tool } from '../lib/environments/tool.ts';
import { mean } from '../lib/statistics.ts';

// ─── Prompt ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const SYSTEM_PROMPT =
  'Solve the problem. You can call a tool: write <tool:NAME>what it is to work on</tool>, and its answer follows inside <result></result>. Call one before you answer. Then give the final answer alone inside <answer></answer>. The tools:';

/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(
  tokenizer: Tokenizer,
  { question }: Pick<Problem, 'question'>,
  tools: Tool[],
  { systemPrompt = SYSTEM_PROMPT }: { systemPrompt?: string | undefined },
): number[] {
  const system = { role: 'system', content: [systemPrompt, describeTools(tools)].filter(Boolean).join('\n') };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

// ─── Rewards and metrics ─────────────────────────────────────────────────────────────────────────────────────────────

/** Whether an answer was given, and is right. */
export const isRight = (given: string | undefined, { answers }: Pick<Problem, 'answers'>): boolean =>
  given !== undefined && exactMatch(given, answers);

/** +0.2 if the first turn is a call; if not, −0.5, and there the episode ends. */
const callReward = ({ calls }: Conversation): number => (calls.length > 0 ? 0.2 : -0.5);

/** +0.5 if every call worked; −1 if one failed, and there the episode ends. */
const executionReward = ({ calls }: Conversation): number =>
  calls.length === 0 ? 0 : calls.every(({ ok }) => ok) ? 0.5 : -1;

/** +0.3 if an answer in its tags follows, −0.8 if not; 0 if the episode has ended before. */
const formatReward = (conversation: Conversation): number =>
  executionReward(conversation) <= 0 ? 0 : answerOf(conversation) !== undefined ? 0.3 : -0.8;

/** +1 if that answer is right, −0.5 if it is wrong; 0 if there is none. */
const correctnessReward = (conversation: Conversation, problem: Parameters<typeof isRight>[1]): number =>
  formatReward(conversation) <= 0 ? 0 : isRight(answerOf(conversation), problem) ? 1 : -0.5;

/** In the order of the episode; `--reward-weights` is in this order too. Together from −0.8 to 2. */
export const REWARDS = {
  call: callReward,
  execution: executionReward,
  format: formatReward,
  correctness: correctnessReward,
};

/**
 * What a conversation is worth.
 * @param weights - of the rewards, in the order of {@link REWARDS}
 * @returns the rewards in this order, their weighted sum, and what became of the answer, with or without a tool
 */
export function gradeConversation(
  conversation: Conversation,
  problem: Parameters<typeof isRight>[1] & { question: string },
  weights: readonly number[],
): { rewards: number[]; reward: number; verdict: Verdict } {
  const rewards = Object.values(REWARDS).map((reward) => reward(conversation, problem));
  const reward = rewards.reduce((sum, reward, i) => sum + weights[i] * reward, 0);
  const given = answerOf(conversation);
  const verdict = given === undefined ? 'missing' : isRight(given, problem) ? 'right' : 'wrong';
  return { rewards, reward: finiteReward(reward, problem), verdict };
}

/** The option with the weights of the rewards. */
export const rewardWeights = () => rewardWeightsOption(Object.keys(REWARDS));

/**
 * Calls a conversation, the share of calls that failed (NaN if there was none), and the recall: how many of the passages
 * that the answer takes were among those that the searches found, be it that an answer was cut before them (NaN if
 * nobody says what the answers take).
 */
export function callMetrics(rollouts: { calls: Call[]; problem: Problem }[]): Record<string, number> {
  const calls = rollouts.flatMap(({ calls }) => calls);
  const recalls = rollouts.flatMap(({ problem: { supporting }, calls }) => {
    const found = new Set(calls.flatMap(({ titles }) => titles ?? []));
    return supporting ? [mean(supporting.map((title) => Number(found.has(title))))] : [];
  });
  return {
    'tools/call_frequency': calls.length / rollouts.length,
    'tools/failure_frequency': mean(calls.map(({ ok }) => Number(!ok))),
    'tools/recall': mean(recalls),
  };
}
