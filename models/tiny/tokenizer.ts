/** Writes the tiny model's tokenizer: one token a character, and one for each tag. */
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

/** A user's question, then the assistant's turn. System messages are left out: the tiny model was taught no instructions. */
const CHAT_TEMPLATE = [
  "{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}",
  "{% elif message['role'] == 'assistant' %}<asst>{{ message['content'] }}<eos>{% endif %}{% endfor %}",
  '{% if add_generation_prompt %}<asst>{% endif %}',
].join('');

/** Writes `tokenizer.json` and `tokenizer_config.json`, as transformers reads them. */
export function writeTokenizer(folder: string): void {
  const vocabulary = [...SPECIAL, ...TAGS, ...PRINTABLE];
  const added = [...SPECIAL, ...TAGS].map((content, id) => ({
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
    vocab: Object.fromEntries(vocabulary.map((token, id) => [token, id])),
    merges: [], // no merges: every character stays a token of its own
  };
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: 'Fuse' },
    model,
  };
  const config = {
    tokenizer_class: 'PreTrainedTokenizerFast',
    pad_token: '<pad>',
    eos_token: '<eos>',
    unk_token: '<unk>',
    clean_up_tokenization_spaces: false,
    model_max_length: 256,
    chat_template: CHAT_TEMPLATE,
  };
  writeFileSync(join(folder, 'tokenizer.json'), `${JSON.stringify(tokenizer, null, 1)}\n`);
  writeFileSync(join(folder, 'tokenizer_config.json'), `${JSON.stringify(config, null, 2)}\n`);
}
