import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { UserError } from '../run/errors.ts';
import { loadTokenizer } from './tokenizer.ts';

const weights = '../shared/weights';
const template =
  '{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<asst>{% endif %}';
const special = ['<bos>', '<eos>', '<user>', '<asst>'];
const vocabulary = [...special, ...'0123456789+-=abc \n'];
const tokenizerJson = {
  version: '1.0',
  added_tokens: special.map((content, id) => {
    return { id, content, special: true, single_word: false, lstrip: false, rstrip: false, normalized: false };
  }),
  normalizer: null,
  pre_tokenizer: null,
  post_processor: {
    type: 'TemplateProcessing',
    single: [{ SpecialToken: { id: '<bos>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
    pair: [],
    special_tokens: { '<bos>': { id: '<bos>', ids: [0], tokens: ['<bos>'] } },
  },
  decoder: { type: 'Fuse' },
  model: { type: 'BPE', vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])), merges: [] },
};

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'tokenizer-'));
  vi.stubGlobal('fetch', () => {
    throw new Error('nothing may be fetched');
  });
});
afterAll(async () => {
  vi.unstubAllGlobals();
  await rm(folder, { recursive: true });
});

async function load(config: Record<string, unknown>) {
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tokenizerJson));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(config));
  return loadTokenizer(folder);
}

const ids = (...tokens: string[]) => tokens.map((token) => vocabulary.indexOf(token));

test('encodes and decodes', async () => {
  const tokenizer = await load({ bos_token: '<bos>', eos_token: { content: '<eos>' } });
  expect(tokenizer).toMatchObject({ vocabSize: vocabulary.length, eosTokenId: 1, padTokenId: undefined });
  expect(tokenizer.encode('1+2')).toEqual(ids('<bos>', '1', '+', '2'));
  expect(tokenizer.encode('1<eos>', { addSpecialTokens: false })).toEqual(ids('1', '<eos>'));
  expect(tokenizer.decode(ids('a', ' ', '=', '<eos>'))).toBe('a =<eos>');
  expect(tokenizer.decode(ids('a', ' ', '=', '<eos>'), { skipSpecialTokens: true })).toBe('a =');
  expect(tokenizer.decode(Int32Array.from(ids('a', 'b')))).toBe('ab');
  expect(tokenizer.decode([])).toBe('');
  expect(tokenizer.decode([999, ...ids('a')])).toBe('a');
});

test('what has no token is left out by BPE, as in Python, and refused by other kinds', async () => {
  const tokenizer = await load({ bos_token: '<bos>' });
  expect(tokenizer.encode('1ü2')).toEqual(ids('<bos>', '1', '2'));
  const model = { type: 'WordLevel', vocab: tokenizerJson.model.vocab };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ ...tokenizerJson, model }));
  const words = await loadTokenizer(folder);
  expect(words.encode('1')).toEqual(ids('<bos>', '1'));
  expect(() => words.encode('ü')).toThrow(/no token for "ü", found in "ü"/);
  expect(() => words.encode('ü')).toThrow(UserError);
});

test('applies the chat template, and adds no second BOS', async () => {
  const tokenizer = await load({ bos_token: '<bos>', chat_template: template });
  const messages = [{ role: 'user', content: '1+2' }];
  expect(tokenizer.chat(messages)).toEqual(ids('<bos>', '<user>', '1', '+', '2', '<asst>'));
  expect(tokenizer.chat(messages, { addGenerationPrompt: false })).toEqual(ids('<bos>', '<user>', '1', '+', '2'));
});

test('takes the chat template from chat_template.jinja too', async () => {
  await writeFile(join(folder, 'chat_template.jinja'), template);
  const tokenizer = await load({ bos_token: '<bos>' });
  await rm(join(folder, 'chat_template.jinja'));
  expect(tokenizer.hasChatTemplate).toBe(true);
  expect(tokenizer.chat([{ role: 'user', content: 'a' }])).toEqual(ids('<bos>', '<user>', 'a', '<asst>'));
});

test('without a chat template, contents are lines of plain text', async () => {
  const tokenizer = await load({ bos_token: '<bos>' });
  expect(tokenizer.hasChatTemplate).toBe(false);
  const messages = ['a', 'b'].map((content) => ({ role: 'user', content }));
  expect(tokenizer.chat(messages)).toEqual(ids('<bos>', 'a', '\n', 'b'));
});

test('refuses what it cannot use', async () => {
  const refusing = await load({ chat_template: "{{ raise_exception('no system role') }}" });
  expect(() => refusing.chat([{ role: 'system', content: 'a' }])).toThrow(/refuses this conversation: no system role/);
  await expect(loadTokenizer(join(folder, 'none'))).rejects.toThrow(/tokenizer.json: there is no such file/);
  await writeFile(join(folder, 'tokenizer.json'), '{"model": {"type": "Nonsense"}}');
  await expect(loadTokenizer(folder)).rejects.toThrow(UserError);
});

type Greedy = { prompt: string; prompt_ids: number[]; output_ids: number[]; text: string };

describe.each(['TinyStories-656K', 'stories260K-hf'])('%s', (name) => {
  test.skipIf(!existsSync(`${weights}/${name}`))(`agrees with transformers (needs ${weights}/${name})`, async () => {
    const tokenizer = await loadTokenizer(`${weights}/${name}`);
    const reference = JSON.parse(await readFile(`${weights}/${name}/${name}.reference.json`, 'utf8'));
    expect(tokenizer.encode(reference.text)).toEqual(reference.input_ids);
    for (const { prompt, prompt_ids, output_ids, text } of reference.greedy as Greedy[]) {
      expect(tokenizer.encode(prompt)).toEqual(prompt_ids);
      expect(tokenizer.decode(output_ids, { skipSpecialTokens: true })).toBe(text);
    }
  });
});
