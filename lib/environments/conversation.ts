/** Conversations with tools: calls in the middle of what the policy writes, and what it is fed in answer. */

import type { Tokenizer } from '../checkpoint/tokenizer.ts';
import { UserError } from '../errors.ts';
import type { Completion, Reaction } from '../generation/generate.ts';
import { callTool, type Tool, type ToolResult } from './tool.ts';

/** One call of a tool, and what came of it. */
export type Call = ToolResult & { tool: string; body: string };

/** What rewards look at: what the policy wrote in each of its turns, and its calls. What a tool wrote is no answer. */
export type Conversation = { turns: string[]; calls: Call[] };

/** One stretch of a conversation: who wrote it, and what. */
export type Stretch = { by: 'policy' | 'tool'; text: string };

const CALL = /<tool:([\w-]+)>(.*?)<\/tool>/s;
const ANSWER = /<answer>(.*?)<\/answer>/s;

/** Limits of a conversation: seconds of a call, turns, tokens of a turn, and tokens of a tool's answer. */
export type ConversationOptions = {
  toolTimeout: number;
  maxTurns: number;
  maxTurnTokens: number;
  maxToolTokens: number;
};

/**
 * The tools' side of all conversations of a batch: `react` is asked after each token that was sampled. A conversation
 * goes on after a call that worked; it ends with an answer, a call that failed, or a budget that is spent.
 * @param tools - what the policy may call; or that of each conversation, by its place
 * @returns `calls`, those of each conversation so far, and `react`, for `generate`
 */
export function converse(
  tokenizer: Tokenizer,
  tools: Tool[] | ((place: number) => Tool[]),
  { rows, ...options }: ConversationOptions & { rows: number },
): {
  calls: Call[][];
  react: (place: number, completion: Pick<Completion, 'tokens'>) => Promise<Reaction | undefined>;
} {
  const calls = Array.from({ length: rows }, (): Call[] => []);
  const begins = calls.map(() => 0); // where each one's turn begins among its tokens
  const react = async (place: number, { tokens }: Pick<Completion, 'tokens'>): Promise<Reaction | undefined> => {
    const turn = tokens.slice(begins[place]);
    const isLong = turn.length >= options.maxTurnTokens;
    // What closes an answer or a call ends in ">": most tokens need no second look.
    if (!isLong && !tokenizer.decode(turn.slice(-1)).includes('>')) return undefined;
    const text = tokenizer.decode(turn);
    if (ANSWER.test(text)) return { finish: 'stop' };
    const [, name, body] = CALL.exec(text) ?? [];
    if (name === undefined) return isLong ? { finish: 'length' } : undefined;
    if (calls[place].length + 1 >= options.maxTurns) return { finish: 'length' };
    const own = typeof tools === 'function' ? tools(place) : tools;
    const tool = own.find((tool) => tool.name === name);
    const result = tool
      ? await callTool(tool, body, options)
      : { ok: false, text: `error: there is no tool "${name}"` };
    calls[place].push({ tool: name, body, ...result });
    if (!result.ok) return { finish: 'stop' };
    const force = resultTokens(tokenizer, result.text, options);
    begins[place] = tokens.length + force.length;
    return { force };
  };
  return { calls, react };
}

/** A tool's answer as the tokens that are fed: tokenised here, once. */
export function resultTokens(
  tokenizer: Tokenizer,
  text: string,
  { maxToolTokens }: Pick<ConversationOptions, 'maxToolTokens'>,
): number[] {
  const encode = (text: string) => tokenizer.encode(text, { addSpecialTokens: false });
  // Nothing in it becomes a tag, or a special token such as the end of a turn.
  const tokens = tokenizer.encode(text, { splitSpecialTokens: true });
  const isCut = tokens.length > maxToolTokens;
  return [...encode('<result>'), ...tokens.slice(0, maxToolTokens), ...encode(isCut ? ' [cut]</result>' : '</result>')];
}

/** Who wrote what, in order, special tokens included. */
export function transcribe(tokenizer: Tokenizer, { tokens, mask }: Pick<Completion, 'tokens' | 'mask'>): Stretch[] {
  const begins = [...mask.keys()].filter((i) => i === 0 || mask[i] !== mask[i - 1]);
  return begins.map((begin, i) => ({
    by: mask[begin] === 1 ? 'policy' : 'tool',
    text: tokenizer.decode(tokens.slice(begin, begins[i + 1])),
  }));
}

/** What the policy answered at the end, if it did. */
export const answerOf = ({ turns }: Pick<Conversation, 'turns'>): string | undefined =>
  ANSWER.exec(turns.at(-1)!)?.[1].trim() || undefined;

/** What to say of tools in a prompt: a line each. */
export const describeTools = (tools: Tool[]): string =>
  tools
    .map(({ name, description, parameters }) => {
      return `${name}: ${description}${parameters ? ` Arguments as JSON, ${JSON.stringify(parameters)}` : ''}`;
    })
    .join('\n');

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
