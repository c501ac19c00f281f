import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test, vi } from 'vitest';
import { createRunCommand, parseRunOptions } from './command.ts';

const folder = mkdtempSync(join(tmpdir(), 'command-'));
afterAll(() => {
  vi.useRealTimers();
  rmSync(folder, { recursive: true });
});

const parse = (...line: string[]) => {
  const defaults = { dataset: 'x.jsonl', maxSteps: 1, evalSteps: 0, maxNewTokens: 4, learningRate: 1e-4 };
  return parseRunOptions(createRunCommand('experiment_x', defaults), ['node', 'train.ts', ...line]);
};

test('what a prompt is made of is fixed at the start, and a resumed run keeps it', () => {
  vi.useFakeTimers({ now: new Date(2026, 6, 26, 23, 59) });
  const { resume, ...options } = parse('--system-prompt', '', '--chat-template-kwargs', '{"enable_thinking": false}');
  expect(options).toMatchObject({
    ...{ templateDate: '2026-07-26', systemPrompt: '', chatTemplateKwargs: '{"enable_thinking":false}' },
  });
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ experiment: 'experiment_x', options }));
  vi.setSystemTime(new Date(2026, 6, 27, 0, 1));
  expect(parse().templateDate).toBe('2026-07-27');
  expect(parse('--resume', folder)).toEqual({ ...options, resume: folder });
});

test('a run from when the data sets lay elsewhere goes on with them where they are now', () => {
  const options = { dataset: 'data/sums_train.jsonl', evalDataset: 'data/mine_test.jsonl' };
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ experiment: 'experiment_x', options }));
  expect(parse('--resume', folder)).toMatchObject({ ...options, dataset: 'tasks/sums/train.jsonl' });
});

test.each([
  ['--chat-template-kwargs', '[1]', /it must be a JSON object, as \{"enable_thinking": false\}/],
  ['--chat-template-kwargs', '{thinking: false}', /it must be a JSON object/],
  ['--template-date', '2026-02-30', /it must be a day such as 2026-07-26/],
  ['--template-date', '26 Jul 2026', /it must be a day/],
])('refuses %s %s', (option, value, message) => {
  expect(() => parse(option, value)).toThrow(message);
});
