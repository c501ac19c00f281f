import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test } from 'vitest';
import { UserError } from '../errors.ts';
import { type ChatOptions, within } from './chat_template.ts';
import { loadTokenizer } from './tokenizer.ts';

let folder: string;
const folders: string[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'template-'));
  folders.push(folder);
  await writeFile(join(folder, 'tokenizer.json'), await readFile('lib/model/fixtures/bytes/tokenizer.json'));
});
afterAll(() => Promise.all(folders.map((folder) => rm(folder, { recursive: true }))));

const conversation = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: '1 + 2' },
];

/** The prompt that a template makes of a conversation, through files as a checkpoint has them. */
async function prompt(template: unknown, options: ChatOptions = {}, messages = conversation): Promise<string> {
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ chat_template: template }));
  const tokenizer = await loadTokenizer(folder, options);
  return tokenizer.decode(tokenizer.chat(messages));
}

test('line ends of Windows and of old Macs are line ends, wherever the template comes from', async () => {
  const lines = ['  {% if true %}', 'a', '', '{{ messages[1].content }}', '  {% endif %}', 'z', ''];
  const expected = 'a\n\n1 + 2\nz'; // as Jinja2 renders it, with trim_blocks and lstrip_blocks
  for (const end of ['\n', '\r\n', '\r']) {
    const template = lines.join(end);
    expect(await prompt(template)).toBe(expected);
    expect(await prompt([{ name: 'default', template }])).toBe(expected);
    await writeFile(join(folder, 'chat_template.jinja'), template);
    expect(await prompt('another')).toBe(expected);
    await rm(join(folder, 'chat_template.jinja'));
  }
  const windows = [{ role: 'user', content: 'a\r\nb' }];
  expect(await prompt('{{ messages[0].content }}', {}, windows)).toBe('a\r\nb'); // what is said stays as it is
});

test('what stands before the first tag stays', async () => {
  expect(await prompt('\n x{{ messages[1].content }}\n')).toBe('\n x1 + 2');
  expect(await prompt('  {{- messages[1].content }}')).toBe('1 + 2');
});

describe('the clock', () => {
  test('tells the day that it was given, in English', async () => {
    const template = (format: string) => `{% if strftime_now is defined %}{{ strftime_now("${format}") }}{% endif %}`;
    const at = (format: string) => prompt(template(format), { templateDate: '2026-07-06' });
    expect(await at('%d %b %Y')).toBe('06 Jul 2026');
    // As Python's datetime(2026, 7, 6).strftime() has it.
    expect(await at('%A %-d %B %y|%a %F %T %%|%m %-m|%H:%M %I %p')).toBe(
      'Monday 6 July 26|Mon 2026-07-06 00:00:00 %|07 7|00:00 12 AM',
    );
    await expect(at('%Q')).rejects.toThrow(/refuses this conversation: strftime_now\(\) is asked for %Q, which is not/);
  });

  test('tells today, if it was given none', async () => {
    expect(await prompt('{{ strftime_now("%Y-%m-%d") }}')).toBe(new Date().toLocaleDateString('sv-SE'));
  });
});

describe('a template from a stranger', () => {
  test('ranges are as long as in the sandbox of transformers', async () => {
    expect(await prompt('{% for i in range(3) %}{{ i }}{% endfor %}')).toBe('012');
    expect(await prompt('{% for i in range(5, 0, -2) %}{{ i }}{% endfor %}')).toBe('531');
    expect(await prompt('{{ range(100000) | length }}')).toBe('100000');
    for (const long of ['100001', '100000000', '0, 5, 0']) {
      await expect(prompt(`{% for i in range(${long}) %}{% endfor %}`)).rejects.toThrow(
        /refuses this .* at most 100000/,
      );
    }
  });

  test('loops that go on are stopped', async () => {
    const loop = (body: string) => `{% for i in range(99999) %}${body}{% endfor %}`;
    const error = await prompt(loop(loop('')), { timeLimit: 200 }).catch((error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(/has not made a prompt within 0.2 s, and was stopped/);
    expect(() => within(50, () => JSON.parse('{'))).toThrow(SyntaxError);
    expect(within(50, () => 7)).toBe(7);
  });

  test('a file that cannot be read is no other prompt', async () => {
    const file = join(folder, 'chat_template.jinja');
    await writeFile(file, Buffer.from([0x61, 0xff, 0x62]));
    await expect(prompt('another')).rejects.toThrow(`${file}: cannot be read: it is not UTF-8 text`);
    await rm(file);
    await mkdir(file);
    await expect(prompt('another')).rejects.toThrow(/chat_template.jinja: cannot be read: EISDIR/);
  });

  test('a template that is none', async () => {
    await expect(prompt(7)).rejects.toThrow(/a chat template must be a text, found a number/);
    await expect(prompt([{ name: 'rag', template: 'a' }])).rejects.toThrow(/multiple chat templates with no default/);
  });
});

test('variables for the template', async () => {
  const template = '{{ messages[1].content }}{% if not thinking %}<think></think>{% endif %}';
  expect(await prompt(template, { chatTemplateKwargs: '{"thinking": false}' })).toBe('1 + 2<think></think>');
  expect(await prompt(template, { chatTemplateKwargs: '{"thinking": true}' })).toBe('1 + 2');
  for (const chatTemplateKwargs of ['{"thinkng": false}', '{"messages": []}']) {
    await expect(prompt(template, { chatTemplateKwargs })).rejects.toThrow(/takes no "(thinkng|messages)" from there/);
  }
  await expect(prompt(undefined, { chatTemplateKwargs: '{"thinking": true}' })).rejects.toThrow(
    /--chat-template-kwargs is about a chat template, and .* has none/,
  );
});

test('a template without a system role', async () => {
  const template =
    '{% for m in messages %}{% if m.role == "system" %}{{ raise_exception("no system role") }}{% endif %}[{{ m.content }}]{% endfor %}';
  await expect(prompt(template)).rejects.toThrow(
    /refuses this conversation: no system role; if it knows no system role, --merge-system-prompt makes/,
  );
  expect(await prompt(template, { mergeSystemPrompt: true })).toBe('[Be brief.\n\n1 + 2]');
  expect(await prompt(template, { mergeSystemPrompt: true }, conversation.slice(1))).toBe('[1 + 2]');
  await expect(prompt('', { mergeSystemPrompt: true })).rejects.toThrow(
    /--merge-system-prompt is about a chat template/,
  );
});
