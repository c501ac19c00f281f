import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import * as calculating from '../experiment_multiturn_tool/task.ts';
import { type BackendName, initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { soloCommunicator } from '../lib/distributed/communicator.ts';
import { loadCorpus, loadQuestions, type Passage } from '../lib/environments/corpus.ts';
import { createBm25, searchTool } from '../lib/environments/search.ts';
import type { Tool } from '../lib/environments/tool.ts';
import { uniform } from '../lib/random.ts';
import { createRun } from '../lib/run/run.ts';
import { openRun } from '../lib/run/run_folder.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { encyclopediaWords } from '../tasks/encyclopedia/generate.ts';
import { refusal } from '../testing/mains.ts';
import { writeTestModel } from '../testing/model.ts';
import { writeTestEmbedder } from '../testing/onnx.ts';
import { BACKEND, jsonLines, NODE, results, runProcess } from '../testing/processes.ts';
import { REWARDS } from './task.ts';
import {
  createCommand,
  evaluate,
  type Options,
  rollout,
  rolloutMetrics,
  toExperience,
  toSample,
  update,
} from './train.ts';

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));

const temp = mkdtempSync(join(tmpdir(), 'grpo-qa-'));
const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));
beforeAll(async () => void (await initBackend((process.env.TFJS_BACKEND as BackendName) ?? 'wasm')));

const SHARED = join(import.meta.dirname, '../../shared');
const shared = (path: string) => join(SHARED, path);

const optionsOf = (flags = ''): Options =>
  parseOptions(createCommand(), ['node', 'train.ts', ...flags.split(' ').filter(Boolean)]);

const oracle = shared('oracles/grpo/qa_em.json');
it.skipIf(!existsSync(oracle))('rewards what Search-R1 rewards (skipped where ../shared is absent)', () => {
  type Solution = { solution: string; targets: string[]; extracted: string | null; score_em: number };
  const { solutions }: { solutions: Solution[] } = JSON.parse(readFileSync(oracle, 'utf8'));
  expect(solutions).toHaveLength(100);
  // What it takes out of a solution is the last answer; here a conversation ends with its first.
  for (const { extracted, targets, score_em } of solutions) {
    const turns = ['<tool:search>x</tool>', `<answer>${extracted ?? ''}</answer>`];
    const reward = REWARDS.correctness(
      { turns, calls: [{ tool: 'search', body: 'x', ok: true, text: '' }] },
      { answers: targets },
    );
    expect(reward === 1).toBe(score_em === 1);
  }
});

it('the rewards are those of experiment_multiturn_tool, with another notion of what is right', () => {
  const calls = [{ tool: 'search', body: 'x', ok: true, text: '' }];
  const total = (turns: string[], called = calls) =>
    Object.values(REWARDS).reduce((sum, reward) => sum + reward({ turns, calls: called }, { answers: ['Orvale'] }), 0);
  const call = '<tool:search>x</tool>';
  expect(total([call, '<answer>the orvale.</answer>'])).toBeCloseTo(2, 12);
  expect(total([call, '<answer>Velvale</answer>'])).toBeCloseTo(0.5, 12);
  expect(total([call, 'Orvale'])).toBeCloseTo(-0.1, 12);
  expect(total([call], [{ ...calls[0], ok: false }])).toBeCloseTo(-0.8, 12);
  expect(total(['<answer>Orvale</answer>'], [])).toBeCloseTo(-0.5, 12);
  expect(Object.keys(REWARDS)).toEqual(Object.keys(calculating.REWARDS));
});

it('recall is the share of the supporting passages that the searches found', () => {
  const row = (supporting: string[] | undefined, ...found: string[][]) => ({
    ...{ prompt: [1], completion: [1], mask: [1], transcript: [], finishReason: 'stop' as const, oldLogProbs: [0] },
    ...{ rewards: [0, 0, 0, 0], reward: 0, verdict: 'wrong' as const, advantage: 0 },
    problem: { question: '', answers: [''], source: '', columns: {}, supporting },
    calls: found.map((titles) => ({ tool: 'search', body: '', ok: true, text: '', titles })),
  });
  const rows = [row(['A', 'B'], ['A', 'C'], ['D']), row(['A'], ['A']), row(['A']), row(undefined, ['A'])];
  const metrics = rolloutMetrics(rows, { ...optionsOf(), numGenerations: 2 });
  expect(metrics['tools/recall']).toBeCloseTo((0.5 + 1 + 0) / 3, 12);
  expect(metrics['tools/call_frequency']).toBe(1);
});

describe('the bundled task', () => {
  const passages = loadCorpus('tasks/encyclopedia/corpus.jsonl');
  const questions = [
    ...loadQuestions('tasks/encyclopedia/train.jsonl'),
    ...loadQuestions('tasks/encyclopedia/test.jsonl'),
  ];

  it('can be solved: whoever searches for the title gets the passage, and the last one holds the answer', async () => {
    const retrieve = createBm25(passages);
    for (const { question, answers, supporting } of questions) {
      for (const title of supporting!) {
        const titles = (await retrieve(title, 3)).map((passage) => passage.title);
        expect(titles, question).toContain(title);
      }
      const { text } = passages.find(({ title }) => title === supporting!.at(-1))!;
      expect(text).toContain(answers[0]);
      expect(question).toContain(supporting![0]);
    }
  });
});

describe('a search tool that is out of order', () => {
  const passages: Passage[] = [{ title: 'Orvale', text: 'Orvale lies on the river Tessin.' }];
  const good = searchTool(createBm25(passages), { topKPassages: 3 });

  /** On a third of the calls it throws, hangs, rejects when it is too late, answers nothing, or a megabyte. */
  const faulty = (counts: Record<string, number>): Tool => {
    let calls = 0;
    const fault = (name: string) => {
      counts[name] = (counts[name] ?? 0) + 1;
    };
    return {
      ...good,
      call: async (query, signal) => {
        const draw = uniform(7, calls++);
        fault('calls');
        if (draw > 1 / 3) return good.call(query, signal);
        if (draw < 1 / 15) {
          fault('thrown');
          throw new Error('the index is gone');
        }
        if (draw < 2 / 15) {
          fault('hanging');
          return new Promise<never>(() => {});
        }
        if (draw < 3 / 15) {
          fault('late');
          return new Promise<never>((_, reject) => setTimeout(() => reject(new Error('too late')), 80));
        }
        if (draw < 4 / 15) {
          fault('nothing');
          return undefined as never;
        }
        fault('megabytes');
        return { ok: true, text: 'Orvale '.repeat(150_000), titles: ['Orvale'] };
      },
    };
  };

  it('stops nothing: training goes on, the failures are counted, and the run ends with a checkpoint', async () => {
    await writeTestModel(at('model'), { favoured: [10, 11, 32], bias: 22, context: 160 });
    const counts: Record<string, number> = {};
    let asked = counts; // without those of the evaluation
    const flags = `--model-name ${at('model')} --batch-size 3 --num-generations 6 --max-steps 5 --tool-timeout 0.05 --max-new-tokens 60 --max-turns 5 --max-tool-tokens 8 --learning-rate 0.0001 --output-dir ${at('run')}`;
    const [options, tools] = [optionsOf(flags), [faulty(counts)]];
    const initial = await loadCheckpoint(at('model'));
    const tokenizer = await loadTokenizer(at('model'));
    const problems = [1, 2, 3].map((i) => ({ question: `${i}`, answers: ['1'], source: '', columns: {} }));
    const state = await createTrainingState(initial, { tokens: 0, skipped: 0 });
    // Silent: signals and messages of this process are those of the tests.
    const place = { experiment: 'experiment_multiturn_qa', outputDir: options.outputDir };
    const folder = { ...openRun({ ...place, options }), silent: true };
    const source = { ...initial, folder: at('model') };
    const context = { shown: {}, heldOut: 0, source, tokenizer, communicator: soloCommunicator() };
    for await (const step of createRun(folder, state, context, options).steps()) {
      const draw = (...token: [number, number, number]) => uniform(0, step.number, ...token);
      const rollouts = await rollout(state.model, tokenizer, problems, draw, tools, options);
      const experience = await toExperience(rollouts, undefined, options);
      const updated = await update(state, experience, step.number, options);
      asked = { ...counts };
      step.log({ ...rolloutMetrics(rollouts, options), ...updated }, experience.map(toSample));
      if (step.isLast) await evaluate(state.model, tokenizer, problems, { samples: 2 }, tools, options);
    }

    expect(counts.thrown * counts.hanging * counts.late * counts.nothing * counts.megabytes).toBeGreaterThan(0);
    expect(statSync(join(options.outputDir!, 'completions.jsonl')).size).toBeLessThan(5e6);
    const metrics = jsonLines(join(options.outputDir!, 'metrics.jsonl'));
    const rows = 18;
    const called = metrics.map((row) => Math.round(rows * Number(row['tools/call_frequency'])));
    const failed = metrics.map((row, i) => Math.round(called[i] * Number(row['tools/failure_frequency'])));
    const sum = (values: number[]) => values.reduce((a, b) => a + b);
    // Empty queries fail as well, and are counted as calls of a tool that answered.
    expect(sum(called)).toBe(asked.calls);
    expect(sum(failed)).toBeGreaterThanOrEqual(asked.thrown + asked.hanging + asked.late + asked.nothing);
    expect(existsSync(at('run', 'checkpoint-5'))).toBe(true);
  });
});

describe('the command line', () => {
  it.each([
    ['--corpus nowhere.jsonl', /nowhere\.jsonl \(ENOENT\): name a JSONL file/],
    ['--corpus tasks/sums/test.jsonl', /sums\/test\.jsonl:1: "title" must be a text, found nothing/],
    ['--dataset tasks/encyclopedia/corpus.jsonl', /encyclopedia\/corpus\.jsonl:1: "question" must be a text/],
    ['--eval-dataset tasks/encyclopedia/corpus.jsonl', /encyclopedia\/corpus\.jsonl:1: "question" must be a text/],
    ['--retriever bm52', /--retriever.* is invalid.*Allowed choices are bm25, embeddings|argument 'bm52' is invalid/],
    ['--top-k-passages 0', /--top-k-passages.*an integer from 1 to 1000/],
  ])('refuses %s in a sentence', async (flags, message) => {
    expect(await refusal('experiment_multiturn_qa/train.ts', flags.split(' '))).toMatch(message);
  });
});

describe.concurrent('the script', () => {
  const run = (flags: string) =>
    runProcess([...NODE, 'experiment_multiturn_qa/train.ts', ...`--backend ${BACKEND} ${flags}`.split(' ')]);
  const SHORT = '--batch-size 2 --num-generations 8 --eval-size 4 --learning-rate 0.001';

  it('stopped and resumed ends as if it never was', async () => {
    const [whole, halves] = [at('whole'), at('halves')];
    const flags = `${SHORT} --save-steps 2 --max-steps 4`;
    expect(await run(`${flags} --output-dir ${whole}`)).toMatchObject({ code: 0, stderr: '' });
    expect(await run(`${flags} --output-dir ${halves}`)).toMatchObject({ code: 0, stderr: '' });
    expect(await run(`--resume ${join(halves, 'checkpoint-2')}`)).toMatchObject({ code: 0, stderr: '' });
    expect(results(halves)).toEqual(results(whole));
  });

  it('searches by meaning where it is told to', async () => {
    writeTestEmbedder(at('embedder'), encyclopediaWords());
    const flags = `${SHORT} --max-steps 1 --retriever embeddings --embedding-model ${at('embedder')}`;
    expect(await run(`${flags} --output-dir ${at('embedded')}`)).toMatchObject({ code: 0, stderr: '' });
    const lost = await run(`${SHORT} --retriever embeddings --embedding-model ${at('nowhere')}`);
    expect(lost.stderr).toMatch(/^error: the embedding model .*nowhere cannot be had or used .*\n$/);
  });

  it.skipIf(!existsSync(shared('data/hotpotqa')))('takes HotpotQA (skipped where ../shared is absent)', async () => {
    const folder = at('hotpot');
    const files = ['dataset', 'corpus'].map((option) => {
      return `--${option} ${shared(`data/hotpotqa/hotpotqa_train${option === 'corpus' ? '_corpus' : ''}.json`)}`;
    });
    const flags = `${files.join(' ')} --eval-size 10 --batch-size 4 --num-generations 4 --max-steps 1`;
    const { code, stdout, stderr } = await run(`${flags} --log-completions-interval 1 --output-dir ${folder}`);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toContain('90 questions to train on, 10 held out; 994 passages to search');
    const [before, after] = jsonLines(join(folder, 'metrics.jsonl'));
    expect(before['eval/tools/recall']).toBeGreaterThanOrEqual(0);
    expect(after.reward).toBeLessThan(2);
  });
});
