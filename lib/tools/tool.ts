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

/** What no policy reads to its end is not kept: characters of an answer, and of an error. */
const MOST = { answer: 10_000, error: 200 };

const cut = (text: string, most: number) => (text.length > most ? `${text.slice(0, most)} [cut]` : text);

/**
 * Calls a tool. It never throws: arguments that do not fit, an exception, a time-out and an answer that is none all come
 * back as `ok: false`. A tool that keeps the process busy all the time is not interrupted.
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
      tool.call(args as never, control.signal),
      timeout,
    ]);
    const { ok, text } = result ?? {};
    if (typeof ok !== 'boolean' || typeof text !== 'string') throw new Error('the tool gave no answer');
    return { ...result, ok, text: cut(text, MOST.answer) };
  } catch (error) {
    const message = error instanceof Error ? error.message : typeof error === 'string' ? error : 'the tool failed';
    return { ok: false, text: `error: ${cut(message, MOST.error)}` };
  } finally {
    clearTimeout(timer);
  }
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
