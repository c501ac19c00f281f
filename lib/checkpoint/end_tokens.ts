import { shown } from '../text.ts';
import type { Tokenizer } from './tokenizer.ts';

/**
 * The tokens that end a text: those that the model's configuration names, and the tokenizer's. Base models and merges
 * often name two different ones, and it is not to be known which of them the weights have learnt.
 * @param config - `eosTokenIds`: of the configuration; those that the model cannot say are left out
 * @returns the tokens, and a line about whatever is unusual about them
 */
export function endTokens(
  config: { eosTokenIds: number[]; vocabSize: number },
  tokenizer: Pick<Tokenizer, 'decode' | 'eosTokenId'>,
): { eosTokenIds: number[]; notices: string[] } {
  const notices: string[] = [];
  const sayable = (id: number) => id < config.vocabSize;
  const own = tokenizer.eosTokenId === undefined ? [] : [tokenizer.eosTokenId];
  const eosTokenIds = [...new Set([...config.eosTokenIds, ...own])].filter(sayable);
  const named = (ids: number[]) => ids.map((id) => `${shown(tokenizer.decode([id]))} (${id})`).join(' and ');

  const beyond = [...config.eosTokenIds, ...own].find((id) => !sayable(id));
  if (beyond !== undefined) {
    notices.push(`end token ${beyond} is outside the model's ${config.vocabSize} tokens: it will never come`);
  }
  const configured = config.eosTokenIds.filter(sayable);
  if (configured.length > 0 && eosTokenIds.length > configured.length) {
    notices.push(
      `end tokens: ${named(configured)} in the model's configuration, ${named(own)} in the tokenizer's: each ends a completion`,
    );
  }
  if (eosTokenIds.length === 0) {
    notices.push(
      'no end token, neither in generation_config.json or config.json nor in tokenizer_config.json: every completion goes on to --max-new-tokens',
    );
  }
  return { eosTokenIds, notices };
}
