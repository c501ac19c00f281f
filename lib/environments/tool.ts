/**
 * Tools that a policy may call in the middle of what it writes. A tool is part of the environment: whatever it does, it
 * answers with a short text, and never stops the training.
 */
import { type Schema, Validator } from '@cfworker/json-schema';

/**
 * What a tool answers. `ok` says whether it worked: nobody has to search the text for the word "error". `titles` are of
 * the passages that a search found.
 */
export type ToolResult = { ok: boolean; text: string; titles?: string[] };

export type Tool = {
  /** As the policy writes it: `<tool:NAME>…</tool>`. */
  name: string;
  /** One line for the prompt. */
  description: string;
  /** JSON schema of the arguments, which are then written as JSON; without it the tool takes plain text. */
  parameters?: Schema;
  /**
   * Does the work.
   * @param args - the text between the tags, trimmed; or what its JSON stands for, if the tool has `parameters`
   * @param signal - aborts when the time is over
   */
  call: (args: never, signal: AbortSignal) => Promise<ToolResult>;
};

/** How much of an answer is kept: characters of its text, of an error and of a title, and the number of titles. */
const MOST = { answer: 10_000, error: 200, title: 1000, titles: 100 };

const cut = (text: string, most: number) => (text.length > most ? `${text.slice(0, most)} [cut]` : text);

/**
 * Calls a tool. It never throws: arguments that do not fit, an exception, a time-out and an answer that is none all come
 * back as `ok: false`. Of an answer only what {@link ToolResult} names is kept.
 *
 * What it cannot catch: a tool that keeps the process busy all the time is not interrupted; one that is out of time may go
 * on; and what a tool starts without waiting for it (a timer, a stream, a promise of its own) ends the run if it throws.
 * @param body - what the policy wrote between the tags
 * @param options.toolTimeout - seconds that the tool may take
 */
export async function callTool(
  tool: Tool,
  body: string,
  { toolTimeout }: { toolTimeout: number },
): Promise<ToolResult> {
  const control = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`no answer within ${toolTimeout} s`));
      control.abort();
    }, 1000 * toolTimeout);
  });
  try {
    const args = parseArguments(tool, body);
    const result: Partial<ToolResult> | undefined = await Promise.race([
      tool.call(args as never, forgiving(control.signal)),
      timeout,
    ]);
    const { ok, text, titles } = result ?? {};
    if (typeof ok !== 'boolean' || typeof text !== 'string') throw new Error('the tool gave no answer');
    const answer = { ok, text: cut(text, MOST.answer) };
    if (!Array.isArray(titles) || !titles.every((title) => typeof title === 'string')) return answer;
    return { ...answer, titles: titles.slice(0, MOST.titles).map((title) => cut(title, MOST.title)) };
  } catch (error) {
    return { ok: false, text: `error: ${cut(messageOf(error), MOST.error)}` };
  } finally {
    clearTimeout(timer);
  }
}

/** What an exception says, which may be anything, and whose `message` may throw in its turn. */
function messageOf(error: unknown): string {
  try {
    const message = error instanceof Error ? error.message : error;
    if (typeof message === 'string') return message;
  } catch {}
  return 'the tool failed';
}

type Listener = Parameters<AbortSignal['addEventListener']>[1];

/** The signal, such that its listeners may throw: in Node.js that would end the process. */
function forgiving(signal: AbortSignal): AbortSignal {
  const guards = new WeakMap<Listener, Listener>(); // the same one each time, or else it could not be removed
  const guardOf = (listener: Listener): Listener => {
    if (!listener) return listener; // null is allowed, and does nothing
    const guard = async (event: Event) => {
      try {
        await (typeof listener === 'function' ? listener.call(signal, event) : listener.handleEvent(event));
      } catch {}
    };
    if (!guards.has(listener)) guards.set(listener, guard);
    return guards.get(listener)!;
  };
  for (const method of ['addEventListener', 'removeEventListener'] as const) {
    const original = signal[method].bind(signal);
    signal[method] = (type: string, listener: Listener, options?: object) => original(type, guardOf(listener), options);
  }
  return signal;
}

function parseArguments({ parameters }: Tool, body: string): unknown {
  if (parameters === undefined) return body.trim();
  let args: unknown;
  try {
    args = JSON.parse(body);
  } catch {
    throw new Error('the arguments are not valid JSON');
  }
  const { valid, errors } = new Validator(parameters).validate(args);
  // The last error is the one deepest in the schema: the first ones only say that something below is wrong.
  if (!valid) throw new Error(`the arguments do not fit: ${errors.at(-1)!.error}`);
  return args;
}
