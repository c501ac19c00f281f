/** A search tool: finds passages of a corpus by their words (BM25), or by what they mean (sentence embeddings). */
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import MiniSearch from 'minisearch';
import { hubEndpoint } from '../checkpoint/download.ts';
import { UserError } from '../errors.ts';
import type { Passage } from './corpus.ts';
import type { Tool } from './tool.ts';

/**
 * Finds up to `k` passages for a query: the best first, equally good ones in the corpus's order. The same query always
 * gives the same passages.
 */
export type Retriever = (query: string, k: number) => Promise<Passage[]>;

// Chinese, Japanese and Korean: between their words is no space, or a particle hangs on them.
const EAST_ASIAN = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}]/u;
const UNSPACED = new RegExp(`${EAST_ASIAN.source}|[\\p{sc=Thai}\\p{sc=Lao}\\p{sc=Khmer}\\p{sc=Myanmar}]`, 'u');
const segmenter = new Intl.Segmenter('en', { granularity: 'word' }); // by script, whatever the language

/**
 * Words in lower case: runs of letters (with their accents) and digits, of any script. Those of scripts without spaces are
 * split by dictionary; of a longer word of East Asia all pairs of characters count as well, so that 北京 is found in 北京市,
 * and 서울 in 서울은.
 */
function wordsOf(text: string): string[] {
  const runs =
    text
      .normalize()
      .toLowerCase()
      .match(/[\p{L}\p{M}\p{N}]+/gu) ?? [];
  return runs.flatMap((run) => {
    if (!UNSPACED.test(run)) return [run];
    return [...segmenter.segment(run)].flatMap(({ segment }) => {
      const characters = [...segment];
      if (characters.length < 3 || !EAST_ASIAN.test(segment)) return [segment];
      return [segment, ...characters.slice(1).map((character, i) => characters[i] + character)];
    });
  });
}

/**
 * Ranks passages by the words that they share with the query: BM25 as Lucene has it (Robertson and Zaragoza 2009,
 * k1 = 1.5, b = 0.75), over title and text. Passages that share no word are not found.
 */
export function createBm25(passages: Passage[]): Retriever {
  const index = new MiniSearch<{ id: number; text: string }>({
    fields: ['text'],
    // To BM25 a passage is as long as it has words; MiniSearch would count each different one once. Numbered, all are
    // different: what is counted is tokens, what is indexed is terms.
    tokenize: (text) => wordsOf(text).map((word, i) => `${i} ${word}`),
    processTerm: (token) => token.slice(token.indexOf(' ') + 1),
    searchOptions: { tokenize: wordsOf, processTerm: (word) => word, bm25: { k: 1.5, b: 0.75, d: 0 } },
  });
  index.addAll(passages.map(({ title, text }, id) => ({ id, text: `${title} ${text}` })));
  return async (query, k) => {
    const results = index.search(query);
    // MiniSearch multiplies BM25's score by the number of the query's words that it found; BM25 does not.
    const scores = results.map(({ id, score, queryTerms }) => ({ id, score: score / queryTerms.length }));
    return best(scores, k).map(({ id }) => passages[id]);
  };
}

/**
 * Ranks passages by the cosine similarity of their sentence embeddings with the query's: mean over the tokens of the
 * model's last hidden states, of length 1 (Sentence-BERT). Embeds all passages first, which takes a while.
 * @param options.model - folder, or id on the Hugging Face hub, of a model with config.json, tokenizer.json and
 *   onnx/model.onnx. The hub is at HF_ENDPOINT, and what it gives is kept below HF_HOME, where these are set.
 * @param options.batchSize - passages that the model reads at a time
 * @throws {UserError} if the model cannot be had or used
 */
export async function createEmbeddings(
  passages: Passage[],
  { model = 'Xenova/all-MiniLM-L6-v2', batchSize = 32 }: { model?: string; batchSize?: number } = {},
): Promise<Retriever> {
  // Imported when needed: it loads native libraries, which takes a while.
  const { env, pipeline } = await import('@huggingface/transformers').catch((error: Error) => {
    throw new UserError(`@huggingface/transformers, which runs embedding models, cannot be loaded: ${error.message}`);
  });
  // By default the library caches inside node_modules, which does not outlive an installation.
  env.cacheDir = join(process.env.HF_HOME || join(homedir(), '.cache', 'huggingface'), 'transformers.js');
  env.remoteHost = hubEndpoint().endpoint;

  /** One vector of length 1, shape (H), a text. */
  let embed: (texts: string[]) => Promise<number[][]>;
  const vectors: number[][] = [];
  try {
    const extract = await pipeline('feature-extraction', existsSync(model) ? resolve(model) : model, {
      device: 'cpu',
      dtype: 'fp32',
    });
    embed = async (texts) => (await extract(texts, { pooling: 'mean', normalize: true })).tolist();
    for (let i = 0; i < passages.length; i += batchSize) {
      vectors.push(...(await embed(passages.slice(i, i + batchSize).map(lineOf))));
    }
  } catch (error) {
    const { message, cause } = error as Error;
    const reason = cause instanceof Error ? `${message}: ${cause.message}` : message;
    throw new UserError(
      `the embedding model ${model} cannot be had or used (${reason}): name a folder, or a model at ${env.remoteHost}, with config.json, tokenizer.json and onnx/model.onnx, or search by words with --retriever bm25, which takes no model`,
    );
  }
  // The rows of a batch search at the same moment: what comes in one turn of the event loop is embedded together.
  let asked: { queries: string[]; answers: Promise<number[][]> } | undefined;
  const embedQuery = async (query: string): Promise<number[]> => {
    const queries = asked?.queries ?? [];
    const embedAll = () => {
      asked = undefined;
      return embed(queries);
    };
    asked ??= { queries, answers: setImmediate().then(embedAll) };
    const at = queries.push(query) - 1;
    return (await asked.answers)[at];
  };
  return async (query, k) => {
    const wanted = await embedQuery(query);
    const cosine = (vector: number[]) => vector.reduce((sum, value, i) => sum + value * wanted[i], 0);
    const scores = vectors.map((vector, id) => ({ id, score: cosine(vector) }));
    return best(scores, k).map(({ id }) => passages[id]);
  };
}

/** The `k` highest scores, highest first; among equals the passage that comes first in the corpus. */
const best = (scores: { id: number; score: number }[], k: number) =>
  scores.sort((a, b) => b.score - a.score || a.id - b.id).slice(0, k);

/** A passage on one line, headed by its title unless the text begins with it. */
function lineOf({ title, text }: Passage): string {
  const isHeaded = text.startsWith(title) && !/^[\p{L}\p{N}]/u.test(text.slice(title.length));
  const line = isHeaded ? text : `${title}: ${text}`;
  return line.replace(/\s+/g, ' ');
}

/**
 * The tool `search`: takes a query, answers passages, one a line, the best first.
 * @param options.topKPassages - passages that it answers at most
 */
export function searchTool(retriever: Retriever, { topKPassages }: { topKPassages: number }): Tool {
  return {
    name: 'search',
    description: 'finds passages on what you ask for in plain words, one a line',
    async call(query: string) {
      if (query.trim() === '') return { ok: false, text: 'error: the query is empty', titles: [] };
      const passages = await retriever(query, topKPassages);
      const text = passages.map(lineOf).join('\n') || 'nothing found';
      return { ok: true, text, titles: passages.map(({ title }) => title) };
    },
  };
}

/** How passages are found: by words, or by meaning. */
export const RETRIEVERS = ['bm25', 'embeddings'] as const;

/** What finds passages: see {@link createBm25} and {@link createEmbeddings}. */
export const createRetriever = async (
  passages: Passage[],
  { retriever, embeddingModel }: { retriever: (typeof RETRIEVERS)[number]; embeddingModel: string },
): Promise<Retriever> =>
  retriever === 'bm25' ? createBm25(passages) : createEmbeddings(passages, { model: embeddingModel });
