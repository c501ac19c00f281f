/** The tokens of a completion as a reader sees them. */
import type { Tokenizer } from '../checkpoint/tokenizer.ts';
import type { Sample } from './evaluation.ts';

/** Tokens that one character may take: what has not become text by then is no text. */
const LONGEST = 8;

/**
 * The text of each token, special ones included; together they are the text of all. A character of several tokens stands
 * with the last of them, and the others have none.
 */
export function piecesOf(ids: number[], { decode }: Pick<Tokenizer, 'decode'>): string[] {
  const pieces: string[] = [];
  // Some tokenizers leave out the space before what they take for the beginning of a text: each token is decoded behind
  // the one before it, and what that one says by itself is taken away again.
  let [begin, end, said] = [0, 0, ''];
  for (let i = 0; i < ids.length; i++) {
    const text = decode(ids.slice(begin, i + 1));
    if (text.endsWith('\ufffd') && i + 1 < ids.length && i + 1 - end < LONGEST) {
      pieces.push('');
      continue;
    }
    pieces.push(text.slice(text.startsWith(said) ? said.length : 0));
    [begin, end] = [end, i + 1];
    said = decode(ids.slice(begin, end));
  }
  return pieces;
}

const rounded = (logProb: number | null): number | null =>
  logProb === null ? null : Math.round(logProb * 1000) / 1000;

/**
 * A sample as it is written: in place of `ids` and `logProbs` (nats, null where the policy did not choose the token) it has
 * `pieces`, the text of each token, and `log_probs` with three digits after the point.
 */
export function withPieces({ ids, logProbs, ...sample }: Sample, tokenizer: Pick<Tokenizer, 'decode'>): Sample {
  if (!Array.isArray(ids) || !Array.isArray(logProbs)) return sample;
  return { ...sample, pieces: piecesOf(ids, tokenizer), log_probs: logProbs.map(rounded) };
}
