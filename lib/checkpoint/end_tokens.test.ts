import { expect, test } from 'vitest';
import { endTokens } from './end_tokens.ts';
import { loadTokenizer } from './tokenizer.ts';

const tokenizer = await loadTokenizer('models/tiny'); // <pad> is 0, <eos> 1
const of = (eosTokenIds: number[], eosTokenId: number | undefined = 1) =>
  endTokens({ eosTokenIds, vocabSize: 110 }, { ...tokenizer, eosTokenId });

test("the configuration's and the tokenizer's end a text, and a difference is said", () => {
  expect(of([1])).toEqual({ eosTokenIds: [1], notices: [] });
  expect(of([0, 1])).toEqual({ eosTokenIds: [0, 1], notices: [] }); // as Llama 3 and Qwen have it
  expect(of([])).toEqual({ eosTokenIds: [1], notices: [] });
  expect(of([0])).toEqual({
    eosTokenIds: [0, 1],
    notices: [
      `end tokens: "<pad>" (0) in the model's configuration, "<eos>" (1) in the tokenizer's: each ends a completion`,
    ],
  });
});

test('without any, completions go on, and this is said', () => {
  const { eosTokenIds, notices } = endTokens(
    { eosTokenIds: [], vocabSize: 110 },
    { ...tokenizer, eosTokenId: undefined },
  );
  expect(eosTokenIds).toEqual([]);
  expect(notices).toEqual([expect.stringMatching(/^no end token, .* every completion goes on to --max-new-tokens$/)]);
});

test('one that the model cannot say ends nothing', () => {
  const beyond = "end token 50256 is outside the model's 110 tokens: it will never come";
  expect(of([50256])).toEqual({ eosTokenIds: [1], notices: [beyond] });
  expect(of([50256], 50256)).toEqual({ eosTokenIds: [], notices: [beyond, expect.stringMatching(/^no end token/)] });
});
