/**
 * The task of this experiment: what the policy is asked, how the search answers it in the middle of its text, and what is
 * rewarded. What is learnt from that is in train.ts.
 */
import { InvalidArgumentError, Option } from '@commander-js/extra-typings';
// biome-ignore format: a list to skip, not to read
import {
  type Completion, callTool, commaSeparated, createBm25, createEmbeddings, exactMatch, finiteReward, mean, type Passage,
  type Question as Problem, type Reaction, type Retriever, type Tokenizer, type Tool, type ToolResult, UserError,
} from '../lib/index.ts';

// ─── Prompt ──────────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_multiturn_tool/conversation.ts: SYSTEM_PROMPT
const SYSTEM_PROMPT =
  'Solve the problem. You can call a tool: write <tool:NAME>what it is to work on</tool>, and its answer follows inside <result></result>. Call one before you answer. Then give the final answer alone inside <answer></answer>. The tools:';

// Copied from experiment_multiturn_tool/conversation.ts: buildPrompt
/** The prompt's token ids, tokenised once: what is sampled after them is never turned into text and back. */
export function buildPrompt(
  tokenizer: Tokenizer,
  { question }: Pick<Problem, 'question'>,
  { tools, systemPrompt = SYSTEM_PROMPT }: { tools: Tool[]; systemPrompt?: string },
): number[] {
  const lines = tools.map(({ name, description, parameters }) => {
    return `${name}: ${description}${parameters ? ` Arguments as JSON, ${JSON.stringify(parameters)}` : ''}`;
  });
  const system = { role: 'system', content: [systemPrompt, ...lines].join('\n') };
  return tokenizer.chat([system, { role: 'user', content: question }], { addGenerationPrompt: true });
}

// Copied from experiment_multiturn_tool/conversation.ts: checkTools
/**
 * Refuses tools that could not be called, and a tokenizer that cannot write what conversations consist of: with these
 * nothing would ever be learnt.
 * @throws {UserError} naming the tool, or what cannot be written
 */
export function checkTools(tokenizer: Tokenizer, tools: Tool[]): void {
  const names = tools.map(({ name }) => name);
  const bad = names.find((name, i) => !/^[\w-]+$/.test(name) || names.indexOf(name) !== i);
  if (bad !== undefined)
    throw new UserError(`a tool needs a name of its own, of A-Z, a-z, 0-9, _ and -; found "${bad}"`);
  const tags = [...names.map((name) => `<tool:${name}></tool>`), '<result></result>', '<answer></answer>', '[cut]'];
  const broken = tags.find(
    (tag) => tokenizer.decode(tokenizer.encode(tag, { addSpecialTokens: false })).trim() !== tag,
  );
  if (broken === undefined) return;
  throw new UserError(`the model's tokenizer cannot write ${broken}, which conversations need: take another model`);
}

// ─── Conversation ────────────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_multiturn_tool/conversation.ts: Call
/** One call of a tool, and what came of it. */
export type Call = ToolResult & { tool: string; body: string };

// Copied from experiment_multiturn_tool/conversation.ts: Conversation
/** What rewards look at: what the policy wrote in each of its turns, and its calls. What a tool wrote is no answer. */
export type Conversation = { turns: string[]; calls: Call[] };

// Copied from experiment_multiturn_tool/conversation.ts: Stretch
/** One stretch of a conversation: who wrote it, and what. */
export type Stretch = { by: 'policy' | 'tool'; text: string };

// Copied from experiment_multiturn_tool/conversation.ts: CALL
const CALL = /<tool:([\w-]+)>(.*?)<\/tool>/s;
// Copied from experiment_multiturn_tool/conversation.ts: ANSWER
const ANSWER = /<answer>(.*?)<\/answer>/s;

// Copied from experiment_multiturn_tool/conversation.ts: ConversationOptions
/** Of `--max-turns` and its like; `tools`: what the policy may call. */
export type ConversationOptions = {
  tools: Tool[];
  toolTimeout: number;
  maxTurns: number;
  maxTurnTokens: number;
  maxToolTokens: number;
};

// Copied from experiment_multiturn_tool/conversation.ts: converse
/**
 * The tool's side of all conversations of a batch: `react` is asked after each token that a row has sampled. A row
 * goes on after a call that worked; it ends with an answer, a call that failed, or a budget that is spent.
 */
export function converse(tokenizer: Tokenizer, rowCount: number, options: ConversationOptions) {
  const calls = Array.from({ length: rowCount }, (): Call[] => []);
  const begins = calls.map(() => 0); // where each row's turn begins among its tokens
  const react = async (row: number, { tokens }: Pick<Completion, 'tokens'>): Promise<Reaction | undefined> => {
    const turn = tokens.slice(begins[row]);
    const isLong = turn.length >= options.maxTurnTokens;
    // What closes an answer or a call ends in ">": most tokens need no second look.
    if (!isLong && !tokenizer.decode(turn.slice(-1)).includes('>')) return undefined;
    const text = tokenizer.decode(turn);
    if (ANSWER.test(text)) return { finish: 'stop' };
    const [, name, body] = CALL.exec(text) ?? [];
    if (name === undefined) return isLong ? { finish: 'length' } : undefined;
    if (calls[row].length + 1 >= options.maxTurns) return { finish: 'length' };
    const tool = options.tools.find((tool) => tool.name === name);
    const result = tool
      ? await callTool(tool, body, options)
      : { ok: false, text: `error: there is no tool "${name}"` };
    calls[row].push({ tool: name, body, ...result });
    if (!result.ok) return { finish: 'stop' };
    const force = resultTokens(tokenizer, result.text, options);
    begins[row] = tokens.length + force.length;
    return { force };
  };
  return { calls, react };
}

// Copied from experiment_multiturn_tool/conversation.ts: resultTokens
/** A tool's answer as the tokens that are fed: tokenised here, once. */
export function resultTokens(
  tokenizer: Tokenizer,
  text: string,
  { maxToolTokens }: Pick<ConversationOptions, 'maxToolTokens'>,
) {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  // Nothing in it becomes a tag, or a special token such as the end of a turn.
  const tokens = tokenizer.encode(text, { splitSpecialTokens: true });
  const isCut = tokens.length > maxToolTokens;
  return [...encode('<result>'), ...tokens.slice(0, maxToolTokens), ...encode(isCut ? ' [cut]</result>' : '</result>')];
}

// Copied from experiment_multiturn_tool/conversation.ts: transcribe
/** Who wrote what, in order, special tokens included. */
export function transcribe(tokenizer: Tokenizer, { tokens, mask }: Pick<Completion, 'tokens' | 'mask'>): Stretch[] {
  const begins = [...mask.keys()].filter((i) => i === 0 || mask[i] !== mask[i - 1]);
  return begins.map((begin, i) => ({
    by: mask[begin] === 1 ? 'policy' : 'tool',
    text: tokenizer.decode(tokens.slice(begin, begins[i + 1])),
  }));
}

// ─── Rewards and metrics ─────────────────────────────────────────────────────────────────────────────────────────────

// Copied from experiment_multiturn_tool/conversation.ts: answerOf
/** What the policy answered at the end, if it did. */
const answerOf = ({ turns }: Pick<Conversation, 'turns'>): string | undefined =>
  ANSWER.exec(turns.at(-1)!)?.[1].trim() || undefined;

/** Whether an answer was given, and is right. */
export const isRight = (given: string | undefined, { answers }: Pick<Problem, 'answers'>): boolean =>
  given !== undefined && exactMatch(given, answers);

// Copied from experiment_multiturn_tool/conversation.ts: callReward
/** +0.2 if the first turn is a call; if not, −0.5, and there the episode ends. */
export const callReward = ({ calls }: Conversation): number => (calls.length > 0 ? 0.2 : -0.5);

// Copied from experiment_multiturn_tool/conversation.ts: executionReward
/** +0.5 if every call worked; −1 if one failed, and there the episode ends. */
export const executionReward = ({ calls }: Conversation): number =>
  calls.length === 0 ? 0 : calls.every(({ ok }) => ok) ? 0.5 : -1;

// Copied from experiment_multiturn_tool/conversation.ts: formatReward
/** +0.3 if an answer in its tags follows, −0.8 if not; 0 if the episode has ended before. */
export const formatReward = (conversation: Conversation): number =>
  executionReward(conversation) <= 0 ? 0 : answerOf(conversation) !== undefined ? 0.3 : -0.8;

// Copied from experiment_multiturn_tool/conversation.ts: correctnessReward
/** +1 if that answer is right, −0.5 if it is wrong; 0 if there is none. */
export const correctnessReward = (conversation: Conversation, problem: Parameters<typeof isRight>[1]): number =>
  formatReward(conversation) <= 0 ? 0 : isRight(answerOf(conversation), problem) ? 1 : -0.5;

// Copied from experiment_multiturn_tool/conversation.ts: REWARDS
/** In the order of the episode; `--reward-weights` is in this order too. Together from −0.8 to 2. */
export const REWARDS = {
  call: callReward,
  execution: executionReward,
  format: formatReward,
  correctness: correctnessReward,
};

// Copied from experiment_multiturn_tool/conversation.ts: scoreConversation
/**
 * What a conversation is worth.
 * @param weights - of the rewards, in the order of {@link REWARDS}
 * @returns the rewards in this order, their weighted sum, and whether the answer is right, with or without a tool
 */
export function scoreConversation(
  conversation: Conversation,
  problem: Parameters<typeof isRight>[1] & { question: string },
  weights: readonly number[],
): { rewards: number[]; reward: number; right: boolean } {
  const rewards = Object.values(REWARDS).map((reward) => reward(conversation, problem));
  const reward = rewards.reduce((sum, reward, i) => sum + weights[i] * reward, 0);
  return { rewards, reward: finiteReward(reward, problem), right: isRight(answerOf(conversation), problem) };
}

// Copied from experiment_multiturn_tool/conversation.ts: weights
/** Parses the weights of the rewards, as in 1,1,1,0.5. */
function weights(text: string): number[] {
  const values = text.split(',').map((value) => (value.trim() === '' ? Number.NaN : Number(value)));
  if (values.length === Object.keys(REWARDS).length && values.every((value) => Math.abs(value) <= 1000)) return values;
  throw new InvalidArgumentError(
    `it must be ${Object.keys(REWARDS).length} numbers from -1000 to 1000, with commas between them`,
  );
}

// Copied from experiment_multiturn_tool/conversation.ts: rewardWeights
/** The option with the weights of the rewards. */
export const rewardWeights = () =>
  new Option('--reward-weights <list>', `of ${Object.keys(REWARDS)}`)
    .argParser(commaSeparated(weights))
    .default([1, 1, 1, 1], '1,1,1,1');

/**
 * Calls a conversation, the share of calls that failed (NaN if there was none), and the recall: how many of the passages
 * that the answer takes were among those that the searches found, be it that an answer was cut before them (NaN if
 * nobody says what the answers take).
 */
export function callMetrics(rollouts: { calls: Call[]; problem: Problem }[]): Record<string, number> {
  const calls = rollouts.flatMap((row) => row.calls);
  const recalls = rollouts.flatMap((row) => {
    const found = new Set(row.calls.flatMap(({ titles }) => titles ?? []));
    return row.problem.supporting ? [mean(row.problem.supporting.map((title) => Number(found.has(title))))] : [];
  });
  return {
    'tools/call_frequency': calls.length / rollouts.length,
    'tools/failure_frequency': mean(calls.map(({ ok }) => Number(!ok))),
    'tools/recall': mean(recalls),
  };
}

// ─── Search ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Refuses a corpus that is not that of the questions, where they say what they need.
 * @throws {UserError} if it holds none of the passages that any question needs
 */
export function checkCorpus(questions: Problem[], { passages, corpus }: { passages: Passage[]; corpus: string }): void {
  const titles = new Set(passages.map(({ title }) => title));
  const needed = questions.flatMap(({ supporting }) => supporting ?? []);
  if (needed.length === 0 || needed.some((title) => titles.has(title))) return;
  const file = questions[0].source.replace(/(:|, item )\d+$/, '');
  throw new UserError(
    `${corpus} holds no passage that the questions of ${file} need, such as "${needed[0]}": name the corpus that belongs to the questions with --corpus, or questions that belong to the corpus with --dataset and --eval-dataset`,
  );
}

/** How passages are found: by words, or by meaning. */
export const RETRIEVERS = ['bm25', 'embeddings'] as const;

/** What finds passages: see {@link createBm25} and {@link createEmbeddings}. */
export const createRetriever = async (
  passages: Passage[],
  { retriever, embeddingModel }: { retriever: (typeof RETRIEVERS)[number]; embeddingModel: string },
): Promise<Retriever> =>
  retriever === 'bm25' ? createBm25(passages) : createEmbeddings(passages, { model: embeddingModel });
