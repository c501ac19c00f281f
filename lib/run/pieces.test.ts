import { existsSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { loadTokenizer } from '../checkpoint/tokenizer.ts';
import { piecesOf, withPieces } from './pieces.ts';

const tokenizer = await loadTokenizer('models/tiny');

describe('piecesOf', () => {
  it('gives the text of each token, special ones included', () => {
    const ids = tokenizer.encode('<think>4+3=7</think>');
    const pieces = piecesOf([...ids, tokenizer.eosTokenId!], tokenizer);
    expect(pieces).toHaveLength(ids.length + 1);
    expect(pieces.join('')).toBe(tokenizer.decode([...ids, tokenizer.eosTokenId!]));
    expect(pieces).toContain('+');
  });

  it('puts a character of several tokens with the last of them', () => {
    const bytes = { decode: (ids: ArrayLike<number>) => new TextDecoder().decode(Uint8Array.from(ids)) };
    expect(piecesOf([...Buffer.from('a€😀b')], bytes)).toEqual(['a', '', '', '€', '', '', '', '😀', 'b']);
    const torn = piecesOf([...Buffer.from('a€').subarray(0, 3), 0x62], bytes);
    expect(torn.join('')).toBe('a\ufffdb');
  });

  it('goes on behind tokens that never become text', () => {
    const bytes = { decode: (ids: ArrayLike<number>) => new TextDecoder().decode(Uint8Array.from(ids)) };
    const pieces = piecesOf([...Array(50).fill(0xff), 0x62], bytes);
    expect(pieces).toHaveLength(51);
    expect(pieces.join('')).toBe(`${'\ufffd'.repeat(50)}b`);
  });

  it('keeps the spaces of a tokenizer that leaves out the first', () => {
    const words = ['▁one', '▁two', '▁', 'three'];
    const decode = (ids: ArrayLike<number>) =>
      Array.from(ids, (id) => words[id])
        .join('')
        .replaceAll('▁', ' ')
        .replace(/^ /, '');
    expect(piecesOf([0, 1, 2, 3], { decode })).toEqual(['one', ' two', ' ', 'three']);
  });

  const folder = '../shared/weights/TinyStories-656K';
  it.skipIf(!existsSync(folder))('joins to the text of a published tokenizer', async () => {
    const published = await loadTokenizer(folder);
    const ids = published.encode('Once upon a time, there was a naïve 🐘.', { addSpecialTokens: false });
    expect(piecesOf(ids, published).join('')).toBe(published.decode(ids));
  });
});

describe('withPieces', () => {
  it('writes pieces and rounded log-probs, and null for what a tool wrote', () => {
    const sample = { reward: 1, ids: [1, 2], logProbs: [-0.12345, null] };
    expect(withPieces(sample, { decode: (ids) => `<${Array.from(ids).join('><')}>` })).toEqual({
      reward: 1,
      pieces: ['<1>', '<2>'],
      log_probs: [-0.123, null],
    });
  });

  it('leaves a sample without tokens as it is', () => {
    expect(withPieces({ reward: 1 }, { decode: String })).toEqual({ reward: 1 });
  });
});
