/** Writes the tiny models' tokenizers: one token a character, one for each tag and, where that is asked for, one a word. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Structure that decoding leaves out, and tags that are text: a reward has to see them. */
const SPECIAL = ['<pad>', '<eos>', '<unk>', '<user>', '<asst>'];
const TAGS = [
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  '<tool:calc>',
  '<tool:search>',
  '</tool>',
  '<result>',
  '</result>',
];
const PRINTABLE = ['\n', ...Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i))];

/** Token ids that the model's configuration names. */
export const TOKEN_IDS = { pad: 0, eos: 1 };
export const VOCABULARY_SIZE = SPECIAL.length + TAGS.length + PRINTABLE.length;

/** All tokens in the order of their ids: with words there are as many more, and the space. */
const vocabularyOf = (words: string[]): string[] => [
  ...[...SPECIAL, ...TAGS, ...PRINTABLE],
  ...(words.length > 0 ? [SPACE, ...words.map((word) => SPACE + word)] : []),
];

/** A user's question, then the assistant's turn. System messages are left out: the tiny model was taught no instructions. */
const CHAT_TEMPLATE = [
  "{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}",
  "{% elif message['role'] == 'assistant' %}<asst>{{ message['content'] }}<eos>{% endif %}{% endfor %}",
  '{% if add_generation_prompt %}<asst>{% endif %}',
].join('');

/** How SentencePiece writes the space before a word. */
const SPACE = '▁';

/**
 * Writes `tokenizer.json` and `tokenizer_config.json`, as transformers reads them.
 * @param options.words - each becomes one token together with the space before it; without words a space is a character
 * @param options.context - tokens that the model can read
 */
export function writeTokenizer(folder: string, { words = [] as string[], context = 256 } = {}): void {
  // A word after a line break is to be the same token as elsewhere: the break stands on its own.
  const apart = words.length > 0 ? [...SPECIAL, ...TAGS, '\n'] : [...SPECIAL, ...TAGS];
  const added = apart.map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: SPECIAL.includes(content),
  }));
  const model = {
    type: 'BPE',
    dropout: null,
    unk_token: '<unk>',
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    vocab: Object.fromEntries(vocabularyOf(words).map((token, id) => [token, id])),
    merges: [], // no merges: what is not a whole word stays one token a character
    ...(words.length > 0 ? { ignore_merges: true } : {}), // a word in the vocabulary is one token, merges or not
  };
  const spaces = { type: 'Metaspace', replacement: SPACE, prepend_scheme: 'always', split: false };
  const letters = { type: 'Split', pattern: { Regex: `${SPACE}?[A-Za-z]+` }, behavior: 'Isolated', invert: false };
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: words.length > 0 ? { type: 'Sequence', pretokenizers: [spaces, letters] } : null,
    post_processor: null,
    decoder: words.length > 0 ? spaces : { type: 'Fuse' },
    model,
  };
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    pad_token: '<pad>',
    eos_token: '<eos>',
    unk_token: '<unk>',
    clean_up_tokenization_spaces: false,
    model_max_length: context,
    chat_template: CHAT_TEMPLATE,
  };
  writeFileSync(join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer, null, 1)}\n`);
  writeFileSync(join(folder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`);
}
