import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { json } from 'node:stream/consumers';
import { parquetWriteBuffer } from 'hyparquet-writer';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { BACKEND } from '../../testing/processes.ts';
import { at, run } from '../../testing/script.ts';
import { importTask, loadData } from './task.ts';

const temp = mkdtempSync(join(tmpdir(), 'task-'));
afterAll(() => rmSync(temp, { recursive: true }));
vi.spyOn(console, 'log').mockImplementation(() => {});

const BUNDLED = { train: 'tasks/sums/train.jsonl', test: 'tasks/sums/test.jsonl' };
const OPTIONS = { dataset: BUNDLED.train, evalSize: 10, seed: 0, questionColumn: 'question', answerColumn: 'answer' };
const load = (task: string, options: Partial<typeof OPTIONS> = {}) =>
  loadData({ ...OPTIONS, ...options, task }, BUNDLED);
const module = (name: string, text: string): string => {
  const file = join(temp, `${name}.mjs`);
  writeFileSync(file, text);
  return file;
};

describe('a task of one’s own', () => {
  it('brings its problems, its instructions and its rules', async () => {
    const file = module(
      'yes',
      `export const task = {
        systemPrompt: 'Agree.',
        load: () => ({ train: Array.from({ length: 30 }, (_, i) => ({ question: 'q' + i, answer: 'yes' })) }),
        verdict: (text, { answer }) => (text === answer ? 'right' : 'wrong'),
        reward: (text, { question }) => text.length + question.length,
      };`,
    );
    const { train, test } = await load(file);
    expect([train.length, test.length]).toEqual([20, 10]);
    expect(new Set([...train, ...test].map(({ question }) => question)).size).toBe(30);
    const { task, question } = train[0];
    expect(task).toMatchObject({ systemPrompt: 'Agree.' });
    expect([task!.verdict!('yes'), task!.verdict!('no'), task!.reward!('four')]).toEqual([
      'right',
      'wrong',
      4 + question.length,
    ]);
  });

  it('trains base and a variant, which say what it is when they go on', async () => {
    const file = module(
      'short',
      `export const task = {
        load: () => ({ train: [{ question: '1+1', answer: '2' }, { question: '2+2', answer: '4' }, { question: '3+3', answer: '6' }] }),
        verdict: () => 'right',
        reward: (text) => -text.length,
      };`,
    );
    const flags = [
      '--task',
      file,
      '--eval-size',
      '1',
      '--eval-samples',
      '0',
      '--batch-size',
      '2',
      '--max-new-tokens',
      '16',
    ];
    for (const name of ['base', 'cispo']) {
      const folder = at(name);
      const script = `experiment_${name}/train.ts`;
      const end = ['--num-generations', '4', '--max-steps', '2', '--backend', BACKEND, '--output-dir', folder];
      const first = await run([...flags, ...end], { script });
      expect(first).toMatchObject({ code: 0, stderr: '' });
      expect(first.stdout).toContain('eval/accuracy: 1 → 1');
      expect(await run(['--resume', folder, '--max-steps', '3'], { script })).toMatchObject({ code: 0, stderr: '' });
    }
  });
});

it.each([
  ['nothing', /^--task nothing: there is no such task in tasks\/ \(sums, .*\), and no such file/],
  [module('broken', 'export const task ='), /^--task .*broken\.mjs cannot be loaded: /],
  [module('empty', 'export const other = 1;'), /^--task .* must export a task with load\(\), found \["other"\]/],
  [module('null', 'throw null'), /^--task .*null\.mjs cannot be loaded: null/],
  [
    module('list', 'export const task = { load: () => [] }'),
    /^--task .*list\.mjs: load\(\) must give \{ train, test\? \}/,
  ],
  [
    module('throws', 'export const task = { load() { throw new Error("503"); } }'),
    /^--task .*throws\.mjs: load\(\) 503/,
  ],
  [
    module('blank', 'export const task = { load: () => ({ train: [{ q: 1 }] }) }'),
    /problem 1: "question" must be a text, found null/,
  ],
  [
    module('answerless', 'export const task = { load: () => ({ train: [{ question: "x" }] }) }'),
    /problem 1: "answer" must be a text or a number, found null/,
  ],
])('refuses %s', async (name, message) => {
  await expect(load(name)).rejects.toThrow(message);
});

it('refuses rules that say nothing, and takes numbers as answers', async () => {
  const file = module(
    'silent',
    `export const task = {
      load: () => ({ train: Array.from({ length: 12 }, () => ({ question: 'x', answer: 7 })) }),
      verdict: () => 'correct',
      reward: () => {},
    };`,
  );
  const [{ answer, task }] = (await load(file)).train;
  expect(answer).toBe('7');
  expect(() => task!.verdict!('x')).toThrow(/verdict\(\) must return right, wrong or missing, found "correct"/);
  expect(() => task!.reward!('x')).toThrow(/reward\(\) must return a finite number, found undefined/);
  const both = loadData({ ...OPTIONS, task: file, evalDataset: 'mine.jsonl' }, BUNDLED);
  await expect(both).rejects.toThrow(/says what is held out: leave out --eval-dataset/);
});

it('sums are those of the experiments', async () => {
  const [own, plain] = [await load('sums'), await loadData(OPTIONS, BUNDLED)];
  const bare = ({ train, test }: typeof own) => [train, test].map((all) => all.map(({ task, ...problem }) => problem));
  expect(bare(own)).toEqual(bare(plain));
});

it('countdown’s problems can be solved, and are judged by its rule', async () => {
  const { train, test } = await load('countdown');
  expect([train.length, test.length]).toEqual([4000, 10]);
  const { question, columns, task } = train[0];
  expect(question).toMatch(/^Make \d+ of \d+(, \d+){2,3}\.$/);
  const { numbers, target } = columns as { numbers: number[]; target: number };
  // Every way to put + - * between the numbers, from left to right.
  const ways = numbers.slice(1).reduce<[string, number][]>(
    (ways, n) =>
      ways.flatMap(([text, value]) => [
        [`(${text}+${n})`, value + n],
        [`(${text}-${n})`, value - n],
        [`(${text}*${n})`, value * n],
      ]),
    [[String(numbers[0]), numbers[0]]],
  );
  const solution = ways.find(([, value]) => value === target)![0];
  expect(task!.verdict!(`<answer>${solution}</answer>`)).toBe('right');
  expect(task!.verdict!(`<answer>${target}</answer>`)).toBe('wrong');
  const file = join(temp, 'countdown.jsonl');
  writeFileSync(file, `${'{"nums":[1,2,3],"target":7}\n'.repeat(12)}`);
  expect((await load('countdown', { dataset: file })).train[0].columns).toEqual({ numbers: [1, 2, 3], target: 7 });
  writeFileSync(file, '{"nums":[1,2.5],"target":7}');
  await expect(load('countdown', { dataset: file })).rejects.toThrow(/countdown\.jsonl:1: expected whole numbers/);
});

it('ifeval’s answers are right if they follow all instructions, and worth the share that they follow', async () => {
  const file = join(temp, 'ifeval.jsonl');
  const line = (kwargs: object[]) =>
    JSON.stringify({
      prompt: 'Say it.',
      instruction_id_list: ['punctuation:no_comma', 'change_case:english_lowercase'],
      kwargs,
    });
  writeFileSync(file, `${line([{}, {}])}\n`.repeat(12));
  const [{ task, question }] = (await load('ifeval', { dataset: file })).train;
  expect(question).toBe('Say it.');
  expect([task!.verdict!('well said this is good'), task!.reward!('well said this is good')]).toEqual(['right', 1]);
  expect([task!.verdict!('well, said this is good'), task!.reward!('well, said this is good')]).toEqual(['wrong', 0.5]);
  writeFileSync(file, line([{}]));
  await expect(load('ifeval', { dataset: file })).rejects.toThrow(
    /ifeval\.jsonl:1: "instruction_id_list" and "kwargs"/,
  );
});

describe('gsm8k', () => {
  const rows = Array.from({ length: 12 }, (_, i) => ({
    question: `How many is ${i}?`,
    answer: `It is ${i}.\n#### 1,00${i}`,
  }));
  it('is read from the folder that OpenAI publishes', async () => {
    for (const split of ['train', 'test']) {
      writeFileSync(join(temp, `${split}.jsonl`), rows.map((row) => JSON.stringify(row)).join('\n'));
    }
    const { train, test } = await load('gsm8k', { dataset: temp, evalSize: 5 });
    expect([train.length, test.length, train[3].answer]).toEqual([12, 5, '1,003']);
    expect(train[3].task!.reward!('<think></think><answer>1003</answer>')).toBe(1);
    const [strict, flexible] = await Promise.all(
      ['strict', 'flexible'].map((rule) => load(`gsm8k/${rule}`, { dataset: temp })),
    );
    const rewards = ({ train }: typeof strict) =>
      ['#### 1003', '1003 it is', 'None'].map((text) => train[3].task!.reward!(text));
    expect([rewards(strict), rewards(flexible)]).toEqual([
      [1, 0, 0],
      [1, 1, 0],
    ]);
    await expect(load('gsm8k', { dataset: 'tasks' })).rejects.toThrow(
      /must be a folder with train\.jsonl and test\.jsonl/,
    );
  });

  it('is fetched from the hub once, and then read from the cache', async () => {
    const columnData = ['question', 'answer'].map((name) => ({
      name,
      data: rows.map((row) => row[name as 'question']),
    }));
    const parquet = Buffer.from(parquetWriteBuffer({ columnData }));
    const asked: string[] = [];
    const oidOf = (path: string) => (path.includes('train') ? 'a' : 'b').repeat(40);
    const server = createServer(async (request, response) => {
      asked.push(request.url!);
      if (request.url === '/api/datasets/openai/gsm8k/paths-info/main') {
        const [path] = ((await json(request)) as { paths: string[] }).paths;
        const about = { type: 'file', path, oid: oidOf(path), size: parquet.length };
        const lastCommit = { id: 'c'.repeat(40), title: 'data', date: '2026-01-01T00:00:00.000Z' };
        return void response.end(JSON.stringify([{ ...about, lastCommit }]));
      }
      const isFile = /^\/datasets\/openai\/gsm8k\/resolve\/\w+\/main\/(train|test)-00000-of-00001\.parquet$/.test(
        request.url!,
      );
      if (!isFile) return void response.writeHead(404).end();
      const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '');
      const body = range ? parquet.subarray(Number(range[1]), Number(range[2]) + 1) : parquet;
      response.writeHead(range ? 206 : 200, {
        ...{ 'content-length': body.length, etag: `"${oidOf(request.url!)}"`, 'x-repo-commit': 'c'.repeat(40) },
        ...(range && { 'content-range': `bytes ${range[1]}-${range[2]}/${parquet.length}` }),
      });
      response.end(request.method === 'HEAD' ? undefined : body);
    }).listen(0);
    vi.stubEnv('HF_ENDPOINT', `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    vi.stubEnv('HF_HUB_CACHE', join(temp, 'hub'));
    try {
      const { train, test } = await load('gsm8k', { evalSize: 5 });
      expect([train.length, test.length, train[2].question, train[2].answer]).toEqual([
        12,
        5,
        'How many is 2?',
        '1,002',
      ]);
      const before = asked.length;
      vi.stubEnv('HF_HUB_OFFLINE', '1');
      expect((await load('gsm8k')).train).toHaveLength(12);
      expect(asked).toHaveLength(before);
      vi.stubEnv('HF_HUB_CACHE', join(temp, 'empty'));
      await expect(load('gsm8k')).rejects.toThrow(
        /^openai\/gsm8k: main\/train.* HF_HUB_OFFLINE forbids asking the hub: /,
      );
      vi.stubEnv('HF_HUB_OFFLINE', '');
      server.close();
      server.closeAllConnections();
      await expect(load('gsm8k')).rejects.toThrow(/does not give it \(.+\): check the connection, or name a copy/);
    } finally {
      vi.unstubAllEnvs();
      server.close();
    }
  });
});

it('every task of the repository can be imported', async () => {
  for (const name of ['sums', 'gsm8k', 'ifeval', 'countdown'])
    expect(typeof (await importTask(name)).load).toBe('function');
});
