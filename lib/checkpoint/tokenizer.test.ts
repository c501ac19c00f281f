import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { uniform } from '../random.ts';
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

test('the chat template knows the special tokens', async () => {
  const chat_template = '{{ bos_token }}{{ eos_token }}{{ 1 if pad_token is defined else 0 }}';
  const tokenizer = await load({ bos_token: { content: '<bos>' }, eos_token: '<eos>', pad_token: null, chat_template });
  expect(tokenizer.decode(tokenizer.chat([{ role: 'user', content: '' }]))).toBe('<bos><eos>0');
  await expect(load({ eos_token: { id: 1 } })).rejects.toThrow(
    /the tokenizer's eos_token must be a text, found {"id":1}/,
  );
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

test('a prompt without a template is not closed by a tokenizer that closes texts (add_eos_token)', async () => {
  const { single } = tokenizerJson.post_processor;
  const closing = {
    ...tokenizerJson.post_processor,
    single: [...single, { SpecialToken: { id: '<eos>', type_id: 0 } }],
  };
  closing.special_tokens = { ...closing.special_tokens, ...{ '<eos>': { id: '<eos>', ids: [1], tokens: ['<eos>'] } } };
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ ...tokenizerJson, post_processor: closing }));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify({ add_eos_token: true, eos_token: '<eos>' }));
  const tokenizer = await loadTokenizer(folder);
  expect(tokenizer.encode('a')).toEqual(ids('<bos>', 'a', '<eos>'));
  expect(tokenizer.chat([{ role: 'user', content: 'a' }])).toEqual(ids('<bos>', 'a'));
});

test('what is written is what is read: clean_up_tokenization_spaces alters nothing', async () => {
  const tokenizer = await loadTokenizer('lib/model/fixtures/bytes');
  for (const text of ['x != y', "it 's done , is n't it ?", 'a  .']) {
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
  }
});

describe('text that looks like tokens', () => {
  const text = '[INST] a <|end|><think>.[EOT] <eos> \n';

  test('becomes them, as in Python, or stays text if it is asked to', async () => {
    const tokenizer = await loadTokenizer('lib/model/fixtures/bytes');
    const added = [259, 260, 261, 262]; // <|end|>, [INST], [EOT], <think>
    // As transformers encodes it.
    const mixed = [260, 256, 32, 259, 262, 46, 261, 32, 60, 101, 111, 115, 62, 32, 10];
    expect(tokenizer.encode(text)).toEqual(mixed);
    const plain = tokenizer.encode(text, { splitSpecialTokens: true });
    expect(plain.filter((id) => added.includes(id))).toEqual([]);
    expect(tokenizer.decode(plain)).toBe(text);
    // As transformers with split_special_tokens, to which <think>, not being special, would remain a token.
    const split = [91, 73, 78, 83, 84, 93, 256, 32, 60, 124, 101, 110, 100, 124, 62, 46, 91, 69, 79, 84, 93];
    expect(tokenizer.encode('[INST] a <|end|>.[EOT]', { splitSpecialTokens: true })).toEqual(split);
  });

  test('white space that was added to a vocabulary is text', async () => {
    const tokenizer = await loadTokenizer('models/tiny_qa');
    const ids = tokenizer.encode('a\nb <eos>', { splitSpecialTokens: true });
    expect(ids).toContain(tokenizer.encode('\n').at(-1));
    expect(tokenizer.decode(ids)).toBe('a\n b <eos>');
    expect(ids).not.toContain(tokenizer.eosTokenId);
  });

  test('whatever the kind of tokenizer, no control token comes out', async () => {
    const bpe = tokenizerJson.model;
    const parts = { '<': 90, b: 91, o: 92, s: 93, '>': 94, '<b': 95, '<bo': 96, '<bos': 97 };
    const merges = [
      ['<', 'b'],
      ['<b', 'o'],
      ['<bo', 's'],
      ['<bos', '>'],
    ];
    const models = [
      { ...bpe, ignore_merges: true },
      { ...bpe, vocab: { ...bpe.vocab, ...parts }, merges },
      { type: 'Unigram', unk_id: 0, vocab: [...special, '<', '>', 'b', 'o', 's'].map((token) => [token, -1]) },
    ];
    for (const model of models) {
      await writeFile(join(folder, 'tokenizer.json'), JSON.stringify({ ...tokenizerJson, model }));
      const tokenizer = await loadTokenizer(folder);
      expect(tokenizer.encode('<bos>', { addSpecialTokens: false })).toEqual([0]);
      expect(tokenizer.encode('<bos>', { splitSpecialTokens: true })).not.toContain(0);
    }
  });
});

// Random texts of what each vocabulary can write; tiny_qa's takes white space at the start, or after a line, for its own.
describe('decode(encode(text)) is the text', () => {
  const ascii = Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i));
  const any = [...ascii, ...'\n\t\r\u00a0éüßñ−½日本語한국어עברית👩🚀\u200d\u0301'];
  const stories = [...' !"$\',-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\n'];
  const tokenizers: [string, string[]][] = [
    ['lib/model/fixtures/bytes', any],
    ['models/tiny', [...ascii, '\n']],
    ['models/tiny_tool', [...ascii, '\n']],
    ['models/tiny_qa', ascii],
    [`${weights}/stories260K-hf`, any],
    [`${weights}/TinyStories-656K`, stories],
  ];
  test.each(tokenizers.filter(([folder]) => existsSync(folder)))(
    `%s (needs ${weights} for all)`,
    async (folder, alphabet) => {
      const tokenizer = await loadTokenizer(folder);
      for (let i = 0; i < 300; i++) {
        const length = Math.floor(40 * uniform(0, i));
        const drawn = Array.from({ length }, (_, j) => alphabet[Math.floor(alphabet.length * uniform(1, i, j))]).join(
          '',
        );
        const text = folder.endsWith('tiny_qa') ? drawn.trimStart() : drawn;
        const ids = tokenizer.encode(text, { splitSpecialTokens: true });
        expect(tokenizer.decode(ids)).toBe(text);
      }
    },
  );
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
