import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { UserError } from '../run/errors.ts';
import { CHECKPOINT_FILES, type JsonObject, readJsonObject } from './config.ts';

export type ChatMessage = { role: string; content: string };

export type Tokenizer = {
  /**
   * Token ids of a text; by default with the special tokens (such as BOS) that the tokenizer puts around a text.
   * What is not in the vocabulary becomes the unknown token; a BPE tokenizer that has none leaves it out, as in Python.
   * @throws {UserError} if a word is not in the vocabulary and a tokenizer of another kind has no unknown token
   */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** Text of token ids; special tokens are shown unless skipped, ids that stand for nothing are left out. */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /**
   * Token ids of a conversation through the model's chat template, which brings its own special tokens. Without a
   * template: the contents, one a line, encoded as a plain text with special tokens.
   * @throws {UserError} if the template refuses the conversation
   */
  chat(messages: ChatMessage[], options?: { addGenerationPrompt?: boolean }): number[];
  hasChatTemplate: boolean;
  /** Largest token id + 1. The model's `vocabSize` must be no smaller. */
  vocabSize: number;
  eosTokenId: number | undefined;
  /** Undefined where the tokenizer names none. May equal `eosTokenId`. */
  padTokenId: number | undefined;
};

/**
 * Loads the tokenizer of a checkpoint folder: tokenizer.json, with tokenizer_config.json, special_tokens_map.json and
 * chat_template.jinja where present. The files are read here and handed over, so nothing is ever fetched.
 * @param folder - checkpoint folder on this machine
 * @throws {UserError} if tokenizer.json is missing or the files are malformed
 */
export async function loadTokenizer(folder: string): Promise<Tokenizer> {
  const file = join(folder, 'tokenizer.json');
  const json = await readJsonObject(file);
  if (!json) throw new UserError(`${file}: there is no such file; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  const config = await readTokenizerConfig(folder);

  // Imported when needed: it loads native libraries (for images and ONNX, of no use here), which takes a while.
  const { PreTrainedTokenizer } = await import('@huggingface/transformers').catch((error: Error) => {
    throw new UserError(`@huggingface/transformers, which reads tokenizers, cannot be loaded: ${error.message}`);
  });
  let tokenizer: InstanceType<typeof PreTrainedTokenizer>;
  try {
    tokenizer = new PreTrainedTokenizer(json, config);
  } catch (error) {
    throw new UserError(`${file}: not a tokenizer that can be used here: ${(error as Error).message}`);
  }
  const vocabulary = tokenizer.get_vocab();
  const idOf = (token: unknown) => (typeof token === 'string' ? vocabulary.get(token) : undefined);
  const knownIds = new Set<number>();
  for (const [token, id] of vocabulary) if (token !== undefined) knownIds.add(id);
  const encode: Tokenizer['encode'] = (text, { addSpecialTokens = true } = {}) => {
    const ids: (number | undefined)[] = tokenizer.encode(text, { add_special_tokens: addSpecialTokens });
    const unknown = ids.findIndex((id) => id === undefined || !knownIds.has(id));
    if (unknown === -1) return ids as number[];
    const token = tokenizer.tokenize(text, { add_special_tokens: addSpecialTokens })[unknown];
    throw new UserError(
      `${file}: the vocabulary has no token for ${JSON.stringify(token)}, found in ${JSON.stringify(text)}; leave it out, or take another model.`,
    );
  };

  return {
    encode,
    decode(ids, { skipSpecialTokens = false } = {}) {
      const known = Array.from(ids).filter((id) => knownIds.has(id));
      if (known.length === 0) return '';
      return tokenizer.decode(known, {
        skip_special_tokens: skipSpecialTokens,
        // Off unless asked for, as in transformers 5: it would alter what the model has written.
        clean_up_tokenization_spaces: config.clean_up_tokenization_spaces === true,
      });
    },
    chat(messages, { addGenerationPrompt = true } = {}) {
      if (!config.chat_template) return encode(messages.map(({ content }) => content).join('\n'));
      let text: string;
      try {
        const options = { tokenize: false as const, add_generation_prompt: addGenerationPrompt };
        text = tokenizer.apply_chat_template(messages, options);
      } catch (error) {
        throw new UserError(`${folder}: the chat template refuses this conversation: ${(error as Error).message}`);
      }
      return encode(text, { addSpecialTokens: false });
    },
    hasChatTemplate: Boolean(config.chat_template),
    vocabSize: [...knownIds].reduce((size, id) => Math.max(size, id + 1), 0),
    eosTokenId: idOf(config.eos_token),
    padTokenId: idOf(config.pad_token),
  };
}

/** tokenizer_config.json, completed by files that some versions of transformers keep apart. */
async function readTokenizerConfig(folder: string): Promise<JsonObject> {
  const config: JsonObject = {
    ...(await readJsonObject(join(folder, 'special_tokens_map.json'))),
    ...(await readJsonObject(join(folder, 'tokenizer_config.json'))),
  };
  // Special tokens are strings, or objects that carry the string among flags.
  for (const [key, value] of Object.entries(config)) {
    const isToken = key.endsWith('_token') && typeof value === 'object' && value !== null && 'content' in value;
    if (isToken) config[key] = value.content;
  }
  const template = await readFile(join(folder, 'chat_template.jinja'), 'utf8').catch(() => undefined);
  if (template !== undefined) config.chat_template = template;
  return config;
}
