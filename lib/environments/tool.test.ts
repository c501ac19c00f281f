import { describe, expect, test, vi } from 'vitest';
import { callTool, type Tool, type ToolResult } from './tool.ts';

const toolOf = (call: Tool['call'], parameters?: Tool['parameters']): Tool => {
  return { name: 'test', description: 'a tool', parameters, call };
};
const echo = async (args: unknown) => ({ ok: true, text: JSON.stringify(args) });
const slow = { toolTimeout: 60 };

test('plain text is trimmed; the result comes back as the tool gave it', async () => {
  expect(await callTool(toolOf(echo), ' \n 1 + 2 \t', slow)).toEqual({ ok: true, text: '"1 + 2"' });
  expect(await callTool(toolOf(echo), '', slow)).toEqual({ ok: true, text: '""' });
  // Without a schema, what looks like JSON is text too.
  expect(await callTool(toolOf(echo), '{"a": 1}', slow)).toEqual({ ok: true, text: '"{\\"a\\": 1}"' });
  const result = { ok: false, text: 'no', titles: ['a'] };
  expect(
    await callTool(
      toolOf(async () => result),
      '',
      slow,
    ),
  ).toEqual(result);
});

describe('arguments with a schema', () => {
  const parameters = {
    type: 'object' as const,
    properties: { city: { type: 'string' as const }, days: { type: 'integer' as const, minimum: 1 } },
    required: ['city'],
  };
  const call = (body: string) => callTool(toolOf(echo, parameters), body, slow);

  test('are parsed', async () => {
    expect(await call(' {"city": "Oslo", "days": 2}\n')).toEqual({ ok: true, text: '{"city":"Oslo","days":2}' });
  });

  test.each([
    ['Oslo', /^error: the arguments are not valid JSON$/],
    ['', /^error: the arguments are not valid JSON$/],
    ['["Oslo"]', /^error: the arguments do not fit: .*type "array"/],
    ['{"days": 2}', /^error: the arguments do not fit: .*"city"/],
    ['{"city": 1}', /^error: the arguments do not fit: .*type "number" is invalid. Expected "string"/],
    ['{"city": "Oslo", "days": 0}', /^error: the arguments do not fit: 0 is less than 1/],
  ])('%s does not fit', async (body, message) => {
    const { ok, text } = await call(body);
    expect(ok).toBe(false);
    expect(text).toMatch(message);
  });
});

describe('never throws', () => {
  const fail = (value: unknown) => () => {
    throw value;
  };

  const errorWith = (message: PropertyDescriptor) => Object.defineProperty(new Error(), 'message', message);

  test.each([
    ['an exception before the tool returns', fail(new Error('broken')), 'error: broken'],
    ['a rejection', () => Promise.reject(new Error('broken')), 'error: broken'],
    ['a text', fail('broken'), 'error: broken'],
    ['nothing', fail(undefined), 'error: the tool failed'],
    ['a symbol', fail(Symbol('broken')), 'error: the tool failed'],
    ['an object that is no text', fail(Object.create(null)), 'error: the tool failed'],
    ['a long message', fail(new Error('x'.repeat(1e6))), `error: ${'x'.repeat(200)} [cut]`],
    ['no answer', async () => undefined as never, 'error: the tool gave no answer'],
    ['an answer without a text', async () => ({ ok: true }) as never, 'error: the tool gave no answer'],
    ['an Error whose message throws', fail(errorWith({ get: fail(new Error('again')) })), 'error: the tool failed'],
    ['an Error whose message is no text', fail(errorWith({ value: { length: 1e9 } })), 'error: the tool failed'],
    ['an Error that is a trap', fail(new Proxy(new Error('x'), { getPrototypeOf: fail(1) })), 'error: the tool failed'],
    [
      'a promise whose then throws',
      () => Object.defineProperty({}, 'then', { get: fail(new Error('no')) }) as never,
      'error: no',
    ],
    [
      'an answer whose text throws',
      async () => Object.defineProperty({ ok: true }, 'text', { get: fail('no') }) as never,
      'error: no',
    ],
    ['a number for a text', async () => ({ ok: true, text: 42 }) as never, 'error: the tool gave no answer'],
  ])('%s', async (_, call, text) => {
    expect(await callTool(toolOf(call), '', slow)).toEqual({ ok: false, text });
  });

  const circle: { self?: unknown } = {};
  circle.self = circle;
  test.each([
    ['a circle', circle],
    ['a BigInt', 1n],
    ['50 MB', 'x'.repeat(5e7)],
  ])('%s in another field is not kept', async (_, extra) => {
    const result = { ok: true, text: 'yes', titles: ['a'], extra };
    const answer = await callTool(
      toolOf(async () => result),
      '',
      slow,
    );
    expect(answer).toEqual({ ok: true, text: 'yes', titles: ['a'] });
  });

  test.each([
    ['no list', 'a', undefined],
    ['not all texts', ['a', 1n], undefined],
    ['a million', new Array(1e6).fill('a'), new Array(100).fill('a')],
    ['a long one', ['x'.repeat(1e6)], [`${'x'.repeat(1000)} [cut]`]],
  ])('titles that are %s', async (_, titles, kept) => {
    const answer = await callTool(
      toolOf(async () => ({ ok: true, text: '', titles: titles as string[] })),
      '',
      slow,
    );
    expect(answer).toEqual(kept ? { ok: true, text: '', titles: kept } : { ok: true, text: '' });
  });

  test('a megabyte is cut, visibly', async () => {
    const answer = await callTool(
      toolOf(async () => ({ ok: true, text: 'x'.repeat(1e6) })),
      '',
      slow,
    );
    expect(answer).toEqual({ ok: true, text: `${'x'.repeat(10_000)} [cut]` });
  });

  test('a tool that hangs is told to stop', async () => {
    const signals: AbortSignal[] = [];
    const hang = (_: string, signal: AbortSignal) => {
      signals.push(signal);
      return new Promise<ToolResult>(() => {});
    };
    const answer = callTool(toolOf(hang), '', { toolTimeout: 0.02 });
    expect(signals[0].aborted).toBe(false);
    expect(await answer).toEqual({ ok: false, text: 'error: no answer within 0.02 s' });
    expect(signals[0].aborted).toBe(true);
  });

  test('a tool that rejects when told to stop has still run out of time', async () => {
    const stop = (_: string, signal: AbortSignal) =>
      new Promise<ToolResult>((_, reject) => signal.addEventListener('abort', () => reject(new Error('stopped'))));
    const answer = await callTool(toolOf(stop), '', { toolTimeout: 0.02 });
    expect(answer).toEqual({ ok: false, text: 'error: no answer within 0.02 s' });
  });

  test('a tool whose listeners throw when told to stop has run out of time, and nothing more', async () => {
    const heard: string[] = [];
    const hang = (_: string, signal: AbortSignal) => {
      const say = (what: string) => {
        heard.push(what);
        throw new Error(what);
      };
      const removed = () => say('removed');
      signal.addEventListener('abort', removed);
      signal.addEventListener('abort', () => say('a function'));
      signal.addEventListener('abort', { handleEvent: () => say('an object') }, { once: true });
      signal.addEventListener('abort', async () => say('a promise'));
      signal.onabort = () => say('onabort');
      signal.addEventListener('abort', null as never);
      signal.removeEventListener('abort', removed);
      return new Promise<ToolResult>(() => {});
    };
    const uncaught = vi.fn();
    const before = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException').on('uncaughtException', uncaught);
    const answer = await callTool(toolOf(hang), '', { toolTimeout: 0.02 });
    await new Promise((resolve) => setTimeout(resolve, 20));
    process.removeAllListeners('uncaughtException');
    for (const listener of before) process.on('uncaughtException', listener);
    expect(answer).toEqual({ ok: false, text: 'error: no answer within 0.02 s' });
    expect(heard).toEqual(['a function', 'an object', 'a promise', 'onabort']);
    expect(uncaught).not.toHaveBeenCalled();
  });

  test('a tool in time is not told to stop afterwards', async () => {
    const signals: AbortSignal[] = [];
    const quick = async (_: string, signal: AbortSignal) => {
      signals.push(signal);
      return { ok: true, text: 'done' };
    };
    await callTool(toolOf(quick), '', { toolTimeout: 0.02 });
    await new Promise((resolve) => setTimeout(resolve, 40));
    expect(signals[0].aborted).toBe(false);
  });
});
