/** Chat templates: Jinja from strangers, rendered as in transformers' sandbox, the same on every day and machine. */
import { createContext, Script } from 'node:vm';
import { isObject } from '../json.ts';

export type ChatMessage = { role: string; content: string };

/** Whether something is a list of messages, of one at least. */
export const isConversation = (value: unknown): value is ChatMessage[] =>
  Array.isArray(value) &&
  value.length > 0 &&
  value.every(
    (message) => isObject(message) && typeof message.role === 'string' && typeof message.content === 'string',
  );

/** What a chat template is given besides the conversation. */
export type ChatOptions = {
  /** the day that `strftime_now()` tells, at midnight, as 2026-07-26 (default: today) */
  templateDate?: string | undefined;
  /** variables for the template: a JSON object, as text, such as {"enable_thinking": false} */
  chatTemplateKwargs?: string | undefined;
  /** put the system prompt into the user's message, for a template without a system role */
  mergeSystemPrompt?: boolean | undefined;
  /** milliseconds that one prompt may take */
  timeLimit?: number;
};

/** The day on this machine, as 2026-07-26. */
export const today = (): string => new Date().toLocaleDateString('sv-SE');

/**
 * Takes the place of Jinja's own `range` and of the clock. On a line of its own, which is removed like any line that
 * ends in a block, so that the template's first line stays what it was.
 */
const SANDBOX = '{% set range = sandbox_range %}{% set strftime_now = sandbox_strftime_now %}\n';

/** A template as it is rendered here, with {@link sandboxVariables}. Line ends are `\n`, whoever wrote it, as in Jinja2. */
export function sandboxed(template: unknown): string {
  if (typeof template !== 'string') throw new Error(`a chat template must be a text, found a ${typeof template}`);
  return SANDBOX + template.replace(/\r\n?/g, '\n');
}

/** What a template must be given to be rendered as {@link sandboxed}. */
export const sandboxVariables = ({ templateDate = today() }: ChatOptions) => ({
  sandbox_range: range,
  sandbox_strftime_now: (format: string) => strftime(new Date(`${templateDate}T00:00:00Z`), format),
});

/** As long as Jinja2's sandbox lets a range be, in which transformers renders. */
const MAX_RANGE = 100_000;

function range(...args: number[]): number[] {
  const [start, stop, step = 1] = args.length === 1 ? [0, args[0]] : args;
  const length = Math.max(0, Math.ceil((stop - start) / step));
  if (!(length <= MAX_RANGE)) throw new Error(`range(${args}) is not one of at most ${MAX_RANGE} numbers`);
  return Array.from({ length }, (_, i) => start + i * step);
}

/** Python's `strftime`, in its own language (English), for what a prompt may say of a day. */
function strftime(day: Date, format: string): string {
  const named = (options: Intl.DateTimeFormatOptions) =>
    day.toLocaleDateString('en-US', { timeZone: 'UTC', ...options });
  const two = (value: number) => String(value).padStart(2, '0');
  const [year, month, date] = [day.getUTCFullYear(), day.getUTCMonth(), day.getUTCDate()];
  const parts: Record<string, string> = {
    ...{ Y: String(year), y: two(year % 100), m: two(month + 1), d: two(date), F: day.toISOString().slice(0, 10) },
    ...{ B: named({ month: 'long' }), b: named({ month: 'short' }) },
    ...{ A: named({ weekday: 'long' }), a: named({ weekday: 'short' }) },
    ...{ H: '00', I: '12', M: '00', S: '00', p: 'AM', T: '00:00:00', '%': '%' },
  };
  return format.replace(/%(-?)(.?)/gs, (directive, bare: string, letter: string) => {
    if (!Object.hasOwn(parts, letter))
      throw new Error(`strftime_now() is asked for ${directive}, which is not known here`);
    return bare ? parts[letter].replace(/^0(?=\d)/, '') : parts[letter];
  });
}

/** The conversation without system messages: their text stands before that of the first user. */
export function mergeSystem(messages: ChatMessage[]): ChatMessage[] {
  const system = messages.filter(({ role }) => role === 'system').map(({ content }) => content);
  const others = messages.filter(({ role }) => role !== 'system');
  const first = others.findIndex(({ role }) => role === 'user');
  return others.map((message, i) =>
    i === first ? { ...message, content: [...system, message.content].join('\n\n') } : message,
  );
}

const script = new Script('work()');
const context = createContext();

/**
 * Runs a function that is given so much time: where it takes longer it is stopped, even in the middle of a loop. What it
 * allocates until then is not limited: a template that fills the memory within that time still ends the process.
 * @returns what `work` returns, or undefined if it was stopped
 */
export function within<T>(milliseconds: number, work: () => T): T | undefined {
  context.work = work;
  try {
    return script.runInContext(context, { timeout: milliseconds }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    return undefined;
  }
}
