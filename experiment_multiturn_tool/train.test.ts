import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { describe, expect, it, vi } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { uniform } from '../lib/random.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { completionLogProbs, logProbsOf } from '../lib/training/log_probs.ts';
import { refusal } from '../testing/mains.ts';
import { BACKEND, jsonLines, NODE, results, runProcess } from '../testing/processes.ts';
import { at, calculator, FLAGS, model, optionsOf, PROBLEMS, sample, tokenizer } from '../testing/talkative_policy.ts';
import { type Experience, evaluate, grpoLoss, lossInputs, rolloutMetrics, updateOnce } from './train.ts';

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));

/** The model with weights of its own. */
const copyOf = ({ params, ...rest }: typeof model): typeof model => ({
  ...rest,
  params: Object.fromEntries(Object.entries(params).map(([name, x]) => [name, x.clone()])),
});

/** Experience of given tokens: `mask` is 1 where the policy wrote. */
const row = (completion: number[], mask: number[], advantage: number): Experience => ({
  ...{ prompt: [3, 60, 4], completion, mask, advantage, problem: PROBLEMS[0], transcript: [], calls: [] },
  ...{ rewards: [0, 0, 0, 0], reward: 0, verdict: 'wrong' as const, finishReason: 'stop' },
  oldLogProbs: completion.map((_, i) => (mask[i] === 1 ? -0.1 - 0.3 * i : 0)),
  refLogProbs: completion.map((_, i) => -0.2 - 0.2 * i),
});

describe('the loss', () => {
  const batch = [
    row([9, 60, 11, 12, 70, 13, 7, 70, 8], [1, 1, 1, 0, 0, 0, 1, 1, 1], 1.5),
    row([7, 61, 8], [1, 1, 1], -0.5),
  ];
  const options = { ...optionsOf('--kl-coef 0.1'), completions: 2 };

  it('has no gradient at all with respect to the logits of what a tool wrote, however unlikely that is', () => {
    const [B, T, V] = [2, 9, 110];
    const targets = batch.map(({ completion }) => [...completion, ...new Array(T - completion.length).fill(0)]);
    const logits = Array.from({ length: B * T * V }, (_, i) => 3 * uniform(1, i));
    for (let t = 3; t < 6; t++) logits[t * V + targets[0][t]] = -200; // to the reference it is likely: e^d overflows
    const lossOf = (x: tf.Tensor) => {
      const oneHot = tf.oneHot(tf.tensor2d(targets, [B, T], 'int32'), V);
      const logProbs = tf.sum(tf.mul(tf.logSoftmax(x), oneHot), 2) as tf.Tensor2D;
      return grpoLoss(lossInputs(logProbs, batch), options);
    };
    const { value, grad } = tf.valueAndGrad(lossOf)(tf.tensor3d(logits, [B, T, V]));
    expect(Number.isFinite(value.dataSync()[0])).toBe(true);
    const gradient = grad.arraySync() as number[][][];
    const size = (values: number[]) => Math.max(...values.map(Math.abs));
    gradient.forEach((row, b) => {
      row.forEach((values, t) => {
        if (batch[b].mask[t] === 1) expect(size(values)).toBeGreaterThan(1e-6);
        else expect(size(values)).toBe(0);
      });
    });
  });

  it('depends on what a tool wrote through what the policy wrote after it', () => {
    const other = { ...batch[0], completion: batch[0].completion.with(4, 71) };
    const logProbs = tf.tidy(() => completionLogProbs(model, [batch[0], other], 1).logProbs.arraySync() as number[][]);
    const differs = logProbs[0].map((value, t) => value !== logProbs[1][t]);
    expect(differs.slice(0, 4)).toEqual([false, false, false, false]);
    expect(differs.slice(5)).toEqual([true, true, true, true]);
  });

  it('is, for conversations of one turn, that of experiment_base to the bit, with its gradients', async () => {
    const settings = optionsOf('--kl-coef 0.1');
    const rows = await sample(optionsOf(`${FLAGS} --max-turns 2`), { tools: [] });
    const refLogProbs = await logProbsOf(model, rows, settings);
    const single = rows.map((row, i) => {
      return { ...row, advantage: uniform(2, i) - 0.5, refLogProbs: refLogProbs[i], text: '' };
    });
    expect(single.every(({ mask }) => mask.every((own) => own === 1))).toBe(true);
    type Update = (...args: [state: never, window: never, rate: number, options: never]) => Promise<{ norm: number }>;
    const update = async (updateWith: Update) => {
      const state = await createTrainingState(copyOf(model), { tokens: 0, skipped: 0 });
      const result = await updateWith(state as never, single as never, 0.01, settings as never);
      const weights = await Promise.all(Object.values(state.model.params).map((x) => x.data()));
      return { result, weights };
    };
    const ours = await update(updateOnce as never);
    const theirs = await update(base.updateOnce as never);
    expect(ours).toEqual(theirs);
    expect(ours.result.norm).toBeGreaterThan(0);
  });

  it('and its metrics, KL and entropy, leave out what a tool wrote', async () => {
    const state = await createTrainingState(copyOf(model), { tokens: 0, skipped: 0 });
    const { sums } = await updateOnce(state, batch.slice(0, 1), 0, optionsOf('--kl-coef 0.1'));
    const { logProbs, entropies } = completionLogProbs(model, batch.slice(0, 1), 1);
    const [p, h] = [logProbs.arraySync()[0], entropies.arraySync()[0]];
    const own = [...batch[0].mask.keys()].filter((t) => batch[0].mask[t] === 1);
    const sum = (of: (t: number) => number) => own.reduce((total, t) => total + of(t), 0);
    const k3 = (t: number) => Math.exp(batch[0].refLogProbs![t] - p[t]) - (batch[0].refLogProbs![t] - p[t]) - 1;
    expect(sums.tokens).toBe(6);
    expect(sums.kl / sum(k3)).toBeCloseTo(1, 4);
    const entropy = sum((t) => h[t]);
    expect(sums.entropy / entropy).toBeCloseTo(1, 4);
  });

  it('is the mean over the tokens that the policy wrote, not over those that a tool wrote', () => {
    const one = (mask: number[]) => {
      const rows = [row([9, 60, 11, 12], mask, 1)].map((r) => ({ ...r, oldLogProbs: [0, 0, 0, 0] }));
      const logProbs = tf.tensor2d([[0, 0, 0, 0]]);
      return grpoLoss(lossInputs(logProbs, rows), { ...options, klCoef: 0, completions: 1 }).dataSync()[0];
    };
    expect(one([1, 1, 1, 0])).toBeCloseTo(-1, 6);
    expect(one([1, 0, 0, 0])).toBeCloseTo(-1, 6);
  });
});

it('metrics count calls, failures and lengths without the tools’ answers', () => {
  const rows = [
    { ...row([9, 11, 12, 13, 7, 8], [1, 1, 0, 0, 1, 1], 1), calls: [{ tool: 'calc', body: '', ok: true, text: '' }] },
    { ...row([9, 11], [1, 1], -1), calls: [{ tool: 'calc', body: '', ok: false, text: '' }] },
    row([7], [1], 0),
    row([7], [1], 0),
  ];
  const metrics = rolloutMetrics(rows, { ...optionsOf(), numGenerations: 2 });
  expect(metrics).toMatchObject({
    'tools/call_frequency': 0.5,
    'tools/failure_frequency': 0.5,
    'completions/mean_length': 2,
  });
});

it('evaluation asks each held-out problem, and says how often it called', async () => {
  const { metrics } = await evaluate(model, tokenizer, PROBLEMS, { samples: 2 }, [calculator], optionsOf(FLAGS));
  expect(Object.keys(metrics)).toEqual([
    ...['eval/accuracy', 'eval/format', 'eval/ability', 'eval/sampled_accuracy', 'eval/pass_at_2'],
    ...['eval/tools/call_frequency', 'eval/tools/failure_frequency'],
  ]);
});

describe('the command line', () => {
  it.each([
    ['--reward-weights 1,2,3', /--reward-weights.* is invalid: it must be 4 numbers from -1000 to 1000, with commas/],
    ['--reward-weights 1,,3,4', /it must be 4 numbers/],
    ['--max-turns 1', /--max-turns.*must be an integer from 2 to/],
    ['--tool-timeout 0', /--tool-timeout.*must be a number above 0/],
    ['--max-tool-token 3', /unknown option '--max-tool-token'.*Did you mean --max-tool-tokens/],
  ])('refuses %s in a sentence', async (flags, message) => {
    expect(await refusal('experiment_multiturn_tool/train.ts', flags.split(' '))).toMatch(message);
  });
});

describe.concurrent('the script', () => {
  const run = (flags: string) =>
    runProcess([...NODE, 'experiment_multiturn_tool/train.ts', ...`--backend ${BACKEND} ${flags}`.split(' ')]);
  const SHORT = '--batch-size 2 --num-generations 8 --eval-size 4 --learning-rate 0.001';

  it('stopped and resumed ends as if it never was; transcripts say who wrote what', async () => {
    const [whole, halves] = [at('whole'), at('halves')];
    const flags = `${SHORT} --kl-coef 0.05 --log-completions-interval 3 --save-steps 2 --max-steps 6`;
    expect(await run(`${flags} --output-dir ${whole}`)).toMatchObject({ code: 0, stderr: '' });
    expect(await run(`${flags} --output-dir ${halves}`)).toMatchObject({ code: 0, stderr: '' });
    expect(await run(`--resume ${join(halves, 'checkpoint-4')}`)).toMatchObject({ code: 0, stderr: '' });
    expect(results(halves)).toEqual(results(whole));
    const lines = jsonLines(join(whole, 'completions.jsonl'));
    expect([...new Set(lines.map(({ step }) => step))]).toEqual([1, 3, 6]);
    const transcripts = lines.map(({ transcript }) => transcript as { by: string; text: string }[]);
    const tools = transcripts.flat().filter(({ by }) => by === 'tool');
    expect(tools.length).toBeGreaterThan(0);
    for (const { text } of tools) expect(text).toMatch(/^<result>\d+<\/result>$/);
  });

  it('takes the weights again from the run that it resumes', async () => {
    const folder = at('weighted');
    await run(`${SHORT} --reward-weights 1,1,0,2 --max-steps 1 --output-dir ${folder}`);
    const resumed = await run(`--resume ${folder}`);
    expect(resumed).toMatchObject({ code: 0, stderr: '' });
    const { options } = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
    expect(options.rewardWeights).toEqual([1, 1, 0, 2]);
    expect('tools' in options).toBe(false);
  });
});
