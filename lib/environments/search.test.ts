import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, test, vi } from 'vitest';
import { writeTestEmbedder } from '../../testing/onnx.ts';
import { UserError } from '../errors.ts';
import { loadCorpus, type Passage } from './corpus.ts';
import { createBm25, createEmbeddings, type Retriever, searchTool } from './search.ts';
import { callTool } from './tool.ts';

const shared = join(import.meta.dirname, '../../../shared');
const hotpot = join(shared, 'data/hotpotqa/hotpotqa_train_corpus.json');

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'search-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

const passages: Passage[] = [
  { title: 'Velmere', text: 'Velmere lies on the river Rhuin. Its mayor is Ada Falmar.' },
  { title: 'Ada Falmar', text: 'Ada Falmar is a farmer. Ada was born in Tamvale, the town.' },
  { title: 'Tamvale', text: 'Tamvale lies on the river Yara.' },
  { title: 'Alû', text: 'Alû is a demon. Его имя — Алу.' },
  { title: 'Twin', text: 'a twin' },
  { title: 'Twin', text: 'a twin' },
];

describe('BM25', () => {
  const retrieve = createBm25(passages);
  const titles = async (query: string, k: number) => (await retrieve(query, k)).map(({ title }) => title);

  test('ranks by shared words', async () => {
    expect(await titles('river', 10)).toEqual(['Tamvale', 'Velmere']); // the shorter one first
    expect(await titles('Where was Ada Falmar born?', 2)).toEqual(['Ada Falmar', 'Velmere']);
    expect(await titles('Ada', 1)).toEqual(['Ada Falmar']);
  });

  test('case and punctuation do not count, letters of other scripts do', async () => {
    expect(await titles('(RIVER), "yara"!', 1)).toEqual(['Tamvale']);
    expect(await titles('ALÛ', 10)).toEqual(['Alû']);
    expect(await titles('Alu\u0302', 10)).toEqual(['Alû']); // û as u and a combining accent
    expect(await titles('имя', 10)).toEqual(['Alû']);
  });

  test('words are found in scripts without spaces, and without their particles', async () => {
    const texts = {
      Chinese: '北京大学位于北京市海淀区，是中国著名的综合性大学。',
      Novel: '《红楼梦》是清代作家曹雪芹创作的长篇小说。',
      Japanese: '夏目漱石は東京で小説『吾輩は猫である』を書いた。スーパーコンピュータはない。',
      Korean: '서울은 대한민국의 수도이다.',
      Thai: 'เมืองหลวงของประเทศไทยคือกรุงเทพ',
      English: 'Beijing, Tokyo, Seoul and Bangkok are capitals.',
    };
    const retrieve = createBm25(Object.entries(texts).map(([title, text]) => ({ title, text })));
    const first = async (query: string) => (await retrieve(query, 1))[0]?.title;
    for (const query of ['北京', '海淀', '中国有哪些大学？']) expect(await first(query), query).toBe('Chinese');
    for (const query of ['谁写了红楼梦？', '曹雪芹']) expect(await first(query), query).toBe('Novel');
    for (const query of ['東京', '夏目漱石', '猫', 'コンピュータ']) expect(await first(query), query).toBe('Japanese');
    for (const query of ['서울', '수도', '대한민국은']) expect(await first(query), query).toBe('Korean');
    for (const query of ['ประเทศไทย', 'เมืองหลวง', 'กรุงเทพ']) expect(await first(query), query).toBe('Thai');
    for (const query of ['上海', '오사카', 'แมว']) expect(await first(query), query).toBe(undefined);
  });

  test('words count as a whole, and as often as the query has them', async () => {
    expect(await titles('riv', 10)).toEqual([]);
    expect(await titles('demon twin twin twin', 1)).toEqual(['Twin']);
    expect(await titles('demon demon demon demon twin', 1)).toEqual(['Alû']);
  });

  test('a passage is as long as it has words, the same ones too', async () => {
    const texts = ['lake a b', 'lake a a a a'].map((text) => ({ title: 'x', text }));
    expect(await createBm25(texts)('lake', 2)).toEqual(texts);
  });

  test('a rare word outweighs two that are everywhere', async () => {
    const texts = ['on the', 'on the', 'on the', 'lake a'].map((text) => ({ title: 'x', text }));
    expect((await createBm25(texts)('on the lake', 1))[0]).toBe(texts[3]);
  });

  test('equals stay in order', async () => {
    const found = await retrieve('twin', 10);
    expect(found).toHaveLength(2);
    expect(found[0]).toBe(passages[4]);
    expect(found[1]).toBe(passages[5]);
    expect((await retrieve('twin', 1))[0]).toBe(passages[4]);
  });

  test.each(['zebra', '', '?! …', 'constructor', '__proto__'])('nothing is found for %o', async (query) => {
    expect(await retrieve(query, 10)).toEqual([]);
  });
});

describe('BM25 on HotpotQA', () => {
  type Query = { question: string; gold_titles: string[]; okapi: [string, number][]; lucene: [string, number][] };
  const file = join(shared, 'oracles/grpo/bm25_hotpot.json');
  if (!existsSync(file) || !existsSync(hotpot)) {
    it.skip('the data and the rankings of others are in ../shared, which is not there');
    return;
  }
  const oracle: { queries: Query[]; recall_okapi: Record<string, number> } = JSON.parse(readFileSync(file, 'utf8'));
  const corpus = loadCorpus(hotpot);
  const titlesOf = (ranking: [string, number][]) => ranking.map(([title]) => title);
  /** Share of a question's supporting titles among the first k, on average. */
  const recall = (ranked: string[][], k: number) =>
    oracle.queries.reduce((sum, { gold_titles: gold }, i) => {
      return sum + gold.filter((title) => ranked[i].slice(0, k).includes(title)).length / gold.length;
    }, 0) / oracle.queries.length;

  test('with words of a-z and 0-9 only, as bm25s had them, every ranking is that of its Lucene', async () => {
    const ascii = (text: string) => text.toLowerCase().replace(/[^a-z0-9]+/g, ' ');
    const plain = corpus.map(({ title, text }) => ({ title: ascii(title), text: ascii(text) }));
    const retrieve = createBm25(plain);
    for (const { question, lucene } of oracle.queries) {
      const found = await retrieve(ascii(question), 10);
      expect(found.map((passage) => corpus[plain.indexOf(passage)].title)).toEqual(titlesOf(lucene));
    }
  });

  test('with words of all scripts the same ten are found, and recall is no lower', async () => {
    const retrieve = createBm25(corpus);
    const found = await Promise.all(oracle.queries.map(({ question }) => retrieve(question, 10)));
    const ranked = found.map((passages) => passages.map(({ title }) => title));
    const [okapi, lucene] = [
      oracle.queries.map((q) => titlesOf(q.okapi)),
      oracle.queries.map((q) => titlesOf(q.lucene)),
    ];
    ranked.forEach((titles, q) => {
      expect(new Set(titles)).toEqual(new Set(lucene[q]));
    });
    for (const k of [1, 3, 5, 10]) {
      expect(recall(okapi, k)).toBeCloseTo(oracle.recall_okapi[k], 9); // this is what the oracle means by recall
      expect(Math.abs(recall(ranked, k) - recall(lucene, k))).toBeLessThan(0.02);
      expect(recall(ranked, k)).toBeGreaterThanOrEqual(recall(okapi, k));
    }
  });
});

describe('embeddings', () => {
  const words = ['river', 'mayor', 'town', 'farmer', 'born', 'demon', 'the', 'is', 'lies', 'on', 'ada', 'tamvale'];
  const requests: string[] = [];
  let server: Server;
  let address: string;
  beforeAll(async () => {
    writeTestEmbedder(join(folder, 'hub'), words);
    server = createServer((request, response) => {
      requests.push(request.url!);
      const file = join(folder, 'hub', request.url!.replace('/test/words/resolve/main/', ''));
      if (existsSync(file)) response.end(readFileSync(file));
      else response.writeHead(404).end();
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    vi.stubEnv('HF_HOME', join(folder, 'home'));
    vi.stubEnv('HF_ENDPOINT', address);
  });
  afterAll(() => {
    vi.unstubAllEnvs();
    server.close();
  });

  const titles = async (retrieve: Retriever, query: string, k: number) =>
    (await retrieve(query, k)).map(({ title }) => title);

  test('the nearest passages are found, with a model of the hub, which is fetched once', async () => {
    const retrieve = await createEmbeddings(passages, { model: 'test/words' });
    expect(requests).toContain('/test/words/resolve/main/onnx/model.onnx');
    expect(existsSync(join(folder, 'home/transformers.js/test/words/onnx/model.onnx'))).toBe(true);
    expect(await titles(retrieve, 'Ada, farmer', 1)).toEqual(['Ada Falmar']);
    expect(await titles(retrieve, 'river', 2)).toEqual(['Tamvale', 'Velmere']);
    expect(await titles(retrieve, 'DEMON', 1)).toEqual(['Alû']);
    expect(await titles(retrieve, 'twin', 100)).toHaveLength(passages.length);

    const found = await retrieve('river', 6);
    expect(await retrieve('river', 6)).toEqual(found);
    requests.length = 0;
    const again = await createEmbeddings(passages, { model: 'test/words' });
    expect(await again('river', 6)).toEqual(found);
    expect(requests.filter((url) => url.endsWith('.onnx'))).toEqual([]);
  });

  test('many may search at the same moment: each gets its own answer, and together they take no longer than a few', async () => {
    const retrieve = await createEmbeddings(passages, { model: join(folder, 'hub') });
    const queries = Array.from({ length: 256 }, (_, i) => ['river', 'farmer', 'demon', 'twin', ''][i % 5]);
    const apart: string[][] = [];
    for (const query of queries.slice(0, 5)) apart.push(await titles(retrieve, query, 3));
    const share = async () => {
      const began = performance.now();
      const together = await Promise.all(queries.map((query) => titles(retrieve, query, 3)));
      const took = performance.now() - began;
      expect(together).toEqual(queries.map((_, i) => apart[i % 5]));
      const one = performance.now();
      for (const query of queries.slice(0, 64)) await titles(retrieve, query, 3);
      return took / (performance.now() - one);
    };
    // One after the other, all take four times as long as these 64; whoever else computes here may delay any of them.
    expect(Math.min(await share(), await share(), await share(), await share())).toBeLessThan(4);
  });

  test('the size of the batch, and so the padding, does not count; equals stay in order', async () => {
    const model = join(folder, 'hub');
    const [one, all] = [
      await createEmbeddings(passages, { model, batchSize: 1 }),
      await createEmbeddings(passages, { model }),
    ];
    for (const query of ['river', 'the farmer is born', 'demon', 'twin']) {
      expect(await titles(one, query, 6)).toEqual(await titles(all, query, 6));
    }
    const [first, second] = await all('twin', 2);
    expect(first).toBe(passages[4]);
    expect(second).toBe(passages[5]);
  });

  /** The message of the UserError that a model ends in. */
  async function refusal(model: string): Promise<string> {
    const error = await createEmbeddings(passages, { model }).catch((error: unknown) => error as Error);
    expect(error).toBeInstanceOf(UserError);
    return (error as Error).message;
  }
  const sentence = (model: string, reason: string) =>
    new RegExp(`^the embedding model ${model} cannot be had or used \\(.*${reason}.*\\): name a folder, or [^\n]*$`);

  test('a model that the hub has not', async () => {
    expect(await refusal('test/nothing')).toMatch(sentence('test/nothing', 'Could not locate file'));
  });

  test('a folder that is missing, empty or broken', async () => {
    expect(await refusal('./no/such/folder')).toMatch(sentence('./no/such/folder', 'Local file missing'));
    const empty = join(folder, 'home');
    expect(await refusal(empty)).toMatch(sentence(empty, 'Local file missing'));
    const broken = join(folder, 'broken');
    writeTestEmbedder(broken, words);
    writeFileSync(join(broken, 'onnx', 'model.onnx'), 'no model');
    expect(await refusal(broken)).toMatch(sentence(broken, 'model.onnx'));
  });

  test('a hub that cannot be reached', async () => {
    await new Promise((resolve) => server.close(resolve));
    expect(await refusal('test/unreachable')).toMatch(sentence('test/unreachable', 'fetch failed'));
  });
});

describe('the tool', () => {
  const tool = searchTool(createBm25(passages), { topKPassages: 2 });
  const call = (query: string) => callTool(tool, query, { toolTimeout: 10 });

  test('answers a passage a line, with the title unless the text begins with it', async () => {
    expect(tool.name).toBe('search');
    expect(await call(' Ada Falmar\n')).toEqual({
      ok: true,
      text: `${passages[1].text}\n${passages[0].text}`,
      titles: ['Ada Falmar', 'Velmere'],
    });
    expect(await call('twin')).toEqual({ ok: true, text: 'Twin: a twin\nTwin: a twin', titles: ['Twin', 'Twin'] });
    const lines = searchTool(createBm25([{ title: 'A', text: 'one\ntwo' }]), { topKPassages: 1 });
    expect((await callTool(lines, 'two', { toolTimeout: 10 })).text).toBe('A: one two');
  });

  test('says so if nothing is found, or asked', async () => {
    expect(await call('zebra')).toEqual({ ok: true, text: 'nothing found', titles: [] });
    expect(await call('  ')).toEqual({ ok: false, text: 'error: the query is empty', titles: [] });
  });
});
