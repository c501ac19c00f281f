import { join } from 'node:path';
import { Template } from '@huggingface/jinja';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { UserError } from '../errors.ts';
import { isObject, type JsonObject, readJsonObject, readOptionalText } from '../json.ts';
import { CHECKPOINT_FILES } from '../model/config.ts';
import { oneLine, shown } from '../text.ts';
import {
  type ChatMessage,
  type ChatOptions,
  mergeSystem,
  sandboxed,
  sandboxVariables,
  within,
} from './chat_template.ts';

export type { ChatOptions };

export type Tokenizer = {
  /**
   * Token ids of a text; by default with the special tokens (such as BOS) that the tokenizer puts around a text.
   * What is not in the vocabulary becomes the unknown token; a BPE tokenizer that has none leaves it out, as in Python.
   * @param options.splitSpecialTokens - the text is text: what looks like a special token in it (or any other that was
   *   added to the vocabulary, such as `<think>`) does not become one; nor are any put around it
   * @throws {UserError} if a word is not in the vocabulary and a tokenizer of another kind has no unknown token
   */
  encode(text: string, options?: { addSpecialTokens?: boolean; splitSpecialTokens?: boolean }): number[];
  /**
   * Text of token ids, as it was written: `clean_up_tokenization_spaces` is ignored, as by transformers since 5.7. Special
   * tokens are shown unless skipped, ids that stand for nothing are left out.
   */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /**
   * Token ids of a conversation through the model's chat template, which brings its own special tokens. Without a
   * template: the contents, one a line, encoded as a plain text with the special tokens that begin one. A system prompt
   * that is empty is none.
   * @throws {UserError} if the template refuses the conversation, or does not come to an end
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
 * @throws {UserError} if tokenizer.json is missing, the files are malformed, or the chat template has no use for the options
 */
export async function loadTokenizer(folder: string, chatOptions: ChatOptions = {}): Promise<Tokenizer> {
  const file = join(folder, 'tokenizer.json');
  const json = await readJsonObject(file);
  if (!json) throw new UserError(`${file}: there is no such file; a checkpoint folder holds ${CHECKPOINT_FILES}.`);
  const config = await readTokenizerConfig(folder);
  const variables: JsonObject = JSON.parse(chatOptions.chatTemplateKwargs ?? '{}');
  const specialTokens = specialTokensOf(folder, config);
  refuseIdleOptions(folder, config.chat_template, variables, chatOptions);

  const create = (json: JsonObject) => {
    try {
      return new HuggingFaceTokenizer(json, config);
    } catch (error) {
      throw new UserError(`${file}: not a tokenizer that can be used here: ${(error as Error).message}`);
    }
  };
  const tokenizer = create(json);
  let plain: typeof tokenizer | undefined; // made when needed: it takes as long as the tokenizer itself
  const vocabulary = tokenizer.get_vocab();
  const idOf = (token: unknown) => (typeof token === 'string' ? vocabulary.get(token) : undefined);
  const eosTokenId = idOf(config.eos_token);
  const knownIds = new Set<number>();
  for (const [token, id] of vocabulary) if (token !== undefined) knownIds.add(id);
  const encode: Tokenizer['encode'] = (text, { addSpecialTokens = true, splitSpecialTokens = false } = {}) => {
    if (splitSpecialTokens) plain ??= create(withoutAddedTokens(json));
    const [encoder, add_special_tokens] = splitSpecialTokens ? [plain!, false] : [tokenizer, addSpecialTokens];
    const ids: (number | undefined)[] = encoder.encode(text, { add_special_tokens }).ids;
    const unknown = ids.findIndex((id) => id === undefined || !knownIds.has(id));
    if (unknown === -1) return ids as number[];
    const token = encoder.tokenize(text, { add_special_tokens })[unknown];
    throw new UserError(
      `${file}: the vocabulary has no token for ${JSON.stringify(token)}, found in ${JSON.stringify(text)}; leave it out, or take another model.`,
    );
  };
  /** A text that is to be continued: some tokenizers (`add_eos_token`) would close it. */
  const encodeOpen = (text: string): number[] => {
    const [ids, own] = [encode(text), encode(text, { addSpecialTokens: false })];
    const isClosed = own.length > 0 && own.at(-1) !== eosTokenId && ids.at(-1) === eosTokenId;
    return isClosed ? ids.slice(0, -1) : ids;
  };
  let template: Template | undefined;
  const render = (messages: ChatMessage[], addGenerationPrompt: boolean): string => {
    try {
      template ??= new Template(sandboxed(defaultTemplate(config.chat_template)));
      return template.render({
        ...{ messages, add_generation_prompt: addGenerationPrompt, tools: null, documents: null },
        ...specialTokens,
        ...variables,
        ...sandboxVariables(chatOptions),
      });
    } catch (error) {
      const hasSystem = messages.some(({ role }) => role === 'system');
      const advice = hasSystem ? "; if it knows no system role, --merge-system-prompt makes that text the user's" : '';
      const reason = oneLine((error as Error).message);
      throw new UserError(`${folder}: the chat template refuses this conversation: ${reason}${advice}`);
    }
  };

  return {
    encode,
    decode(ids, { skipSpecialTokens = false } = {}) {
      const known = Array.from(ids).filter((id) => knownIds.has(id));
      if (known.length === 0) return '';
      return tokenizer.decode(known, { skip_special_tokens: skipSpecialTokens, clean_up_tokenization_spaces: false });
    },
    chat(messages, { addGenerationPrompt = true } = {}) {
      const said = messages.filter(({ role, content }) => role !== 'system' || content !== '');
      if (!config.chat_template) return encodeOpen(said.map(({ content }) => content).join('\n'));
      const conversation = chatOptions.mergeSystemPrompt ? mergeSystem(said) : said;
      const { timeLimit = 5000 } = chatOptions;
      const ids = within(timeLimit, () =>
        encode(render(conversation, addGenerationPrompt), { addSpecialTokens: false }),
      );
      if (ids) return ids;
      throw new UserError(
        `${folder}: the chat template has not made a prompt within ${timeLimit / 1000} s, and was stopped: take another model`,
      );
    },
    hasChatTemplate: Boolean(config.chat_template),
    vocabSize: [...knownIds].reduce((size, id) => Math.max(size, id + 1), 0),
    eosTokenId,
    padTokenId: idOf(config.pad_token),
  };
}

/** The template to use: where there is a list of named ones, the one that is called "default". */
function defaultTemplate(template: unknown): unknown {
  if (!Array.isArray(template)) return template;
  const found = template.filter(isObject).findLast(({ name }) => name === 'default');
  if (found) return found.template;
  throw new Error('there are multiple chat templates with no default');
}

const SPECIAL_TOKENS = ['bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token', 'mask_token'];

/** Special tokens by the names that chat templates know them by. */
function specialTokensOf(folder: string, config: JsonObject): JsonObject {
  const tokens = SPECIAL_TOKENS.flatMap((name) => (config[name] ? [[name, config[name]] as const] : []));
  const wrong = tokens.find(([, token]) => typeof token !== 'string');
  if (wrong) throw new UserError(`${folder}: the tokenizer's ${wrong[0]} must be a text, found ${shown(wrong[1])}`);
  return Object.fromEntries(tokens);
}

/** Options that the chat template would ignore. */
function refuseIdleOptions(
  folder: string,
  template: unknown,
  variables: JsonObject,
  { mergeSystemPrompt }: ChatOptions,
): void {
  const option = mergeSystemPrompt ? '--merge-system-prompt' : '--chat-template-kwargs';
  if (!template && (mergeSystemPrompt || Object.keys(variables).length > 0)) {
    throw new UserError(`${option} is about a chat template, and ${folder} has none: leave the option out`);
  }
  const words = new Set(JSON.stringify(template)?.match(/\w+/g));
  const idle = Object.keys(variables).find(
    (name) => ['messages', 'add_generation_prompt'].includes(name) || !words.has(name),
  );
  if (idle === undefined) return;
  throw new UserError(`--chat-template-kwargs: the chat template of ${folder} takes no ${shown(idle)} from there`);
}

/**
 * A tokenizer to which its added tokens are text. Those of one character, or of white space alone, remain: they are text
 * in any case, and may be the only way to write it.
 */
function withoutAddedTokens(json: JsonObject): JsonObject {
  const added = json.added_tokens as { content: string }[];
  const isText = ({ content }: { content: string }) => content.trim() === '' || [...content].length === 1;
  const hidden = new Set(added.filter((token) => !isText(token)).map(({ content }) => content));
  // Some stand in the vocabulary as well. Nothing may lead there: no merge, and no text, which never has such a name.
  const rename = (token: string) => (hidden.has(token) ? `\u{10ffff}${token}` : token);
  const model = json.model as {
    vocab: [string, number][] | Record<string, number>;
    merges?: (string | string[])[];
    unk_token?: string;
  };
  const entries = Array.isArray(model.vocab) ? model.vocab : Object.entries(model.vocab);
  const vocab = entries.map(([token, value]): [string, number] => [rename(token), value]);
  return {
    ...json,
    added_tokens: added.filter(isText),
    model: {
      ...model,
      vocab: Array.isArray(model.vocab) ? vocab : Object.fromEntries(vocab),
      merges: model.merges?.filter(
        (pair) => !hidden.has(typeof pair === 'string' ? pair.replace(' ', '') : pair.join('')),
      ),
      ...(model.unk_token ? { unk_token: rename(model.unk_token) } : {}),
    },
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
  const template = await readOptionalText(join(folder, 'chat_template.jinja'));
  if (template !== null) config.chat_template = template;
  return config;
}
