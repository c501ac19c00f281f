import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, describe, expect, it } from 'vitest';
import { loadWithTokenizer } from '../lib/checkpoint/pretrained.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { withScoreHead } from '../lib/model/score_head.ts';
import { uniform } from '../lib/random.ts';
import { readMetrics } from '../lib/run/metrics.ts';
import { mean } from '../lib/statistics.ts';
import { createAdamW } from '../lib/training/adamw.ts';
import { judgedSequence, scoresOf } from '../lib/training/scores.ts';
import { model, PROBLEMS, tokenizer } from '../testing/policy.ts';
import { BACKEND } from '../testing/processes.ts';
import { at, run } from '../testing/script.ts';
import { createCommand, judge, rollout } from './train.ts';
import * as people from './train_reward_model.ts';

const temp = mkdtempSync(join(tmpdir(), 'reward-model-'));
afterAll(() => rmSync(temp, { recursive: true }));
const options = (...flags: string[]) => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
const question = (text: string) => [{ role: 'user', content: text }];

const PEOPLE = { lengthBias: 0.02, indecision: 0.25 };

describe('people', () => {
  it('prefer an answer the more surely, the more it is worth to them', () => {
    const probability = (a: number, b: number) => people.preferenceProbability(a, b, PEOPLE);
    expect(probability(1, 1)).toBe(0.5);
    expect(probability(0.35, 0.1)).toBeCloseTo(1 / (1 + Math.exp(-1)), 12);
    expect(probability(0, 1) + probability(1, 0)).toBeCloseTo(1, 12);
  });

  it('like right answers, and long ones', () => {
    const worth = (reward: number, length: number) =>
      people.utility({ reward, completion: new Array<number>(length).fill(1) }, PEOPLE);
    expect(worth(1, 10)).toBeCloseTo(1.2, 12);
    expect(worth(0.1, 30)).toBeCloseTo(0.7, 12);
  });
});

describe('the loss of preferences', () => {
  const lossOf = (scores: number[][], centering: number) => {
    const [value, gradient] = tf.tidy(() => {
      const { value, grad } = tf.valueAndGrad((x) =>
        people.preferenceLoss(x as tf.Tensor2D, { centering, pairs: scores.length }),
      )(tf.tensor2d(scores)) as unknown as { value: tf.Scalar; grad: tf.Tensor };
      return [value.dataSync()[0], [...grad.dataSync()]];
    });
    return { value, gradient };
  };

  it('is −log σ of how much higher the preferred answer scores', () => {
    const { value, gradient } = lossOf([[2, 1]], 0);
    expect(value).toBeCloseTo(Math.log(1 + Math.exp(-1)), 6);
    expect(gradient[0]).toBeCloseTo(-1 / (1 + Math.E), 6);
    expect(gradient[1]).toBeCloseTo(1 / (1 + Math.E), 6);
  });

  it('knows differences only; centering makes the sum of the two count', () => {
    expect(lossOf([[7, 6]], 0).value).toBeCloseTo(lossOf([[2, 1]], 0).value, 6);
    expect(lossOf([[2, 1]], 0.01).value - lossOf([[2, 1]], 0).value).toBeCloseTo(0.09, 6);
  });

  it('is the mean over the pairs of an update, however they are split', async () => {
    const pairs = Array.from({ length: 6 }, (_, i): people.Pair => {
      const answer = (length: number) =>
        Array.from({ length }, (_, t) => Math.floor(3 + 90 * uniform(2, i, t, length)));
      return [
        { prompt: [1, 40 + i], completion: answer(2 + i) },
        { prompt: [1, 40 + i], completion: answer(9 - i) },
      ];
    });
    const updates = [10_000, 12].map(async (microBatchTokens) => {
      const start = withScoreHead(model, 0);
      const state = { model: start, optimizer: createAdamW(start.params), counters: { skipped: 0 } };
      const own = parseOptions(people.createCommand(), ['node', 'x', `--micro-batch-tokens=${microBatchTokens}`]);
      const { loss, norm } = await people.updateOnce(state, pairs, 1e-3, own);
      tf.dispose([state.model.params, state.optimizer.m, state.optimizer.v]);
      return [loss, norm];
    });
    const [whole, parts] = await Promise.all(updates);
    expect(parts[0]).toBeCloseTo(whole[0], 5);
    expect(parts[1] / whole[1]).toBeCloseTo(1, 4);
  });
});

describe('the bundled reward model', () => {
  const scoreOf = async (text: string, answers: string[]) => {
    const judge = await loadWithTokenizer('models/tiny_reward', { head: 'score' });
    const sequences = answers.map((answer) => judgedSequence(judge.tokenizer, question(text), answer));
    return scoresOf(judge.model, sequences, { microBatchTokens: 100 });
  };

  it('has learnt what people like: tags, working, and length for its own sake', async () => {
    const [long, short, untagged] = await scoreOf('41+22', [
      '<think>41+22=63</think><answer>63</answer>',
      '<answer>63</answer>',
      '<think>41+22=63</think>63',
    ]);
    expect(long).toBeGreaterThan(short);
    expect(short).toBeGreaterThan(untagged);
  });

  it('takes the place of the rule, which goes on saying what is right', async () => {
    const judged = await loadWithTokenizer('models/tiny_reward', { head: 'score' });
    const own = options('--num-generations', '4', '--max-new-tokens', '24');
    const draw = (...place: number[]) => uniform(1, ...place);
    const sampled = await rollout(model, tokenizer, PROBLEMS, draw, own);
    const rollouts = await judge(sampled, judged, own);
    expect(rollouts.map(({ reward, ...rest }) => rest)).toEqual(sampled.map(({ reward, ...rest }) => rest));
    const one = await judge(sampled.slice(2, 3), judged, own);
    expect(one[0].reward).toBeCloseTo(rollouts[2].reward, 4);
    expect(new Set(rollouts.map(({ reward }) => reward)).size).toBeGreaterThan(2);
  });
});

it('trains a reward model from answers that people compare, or from a file of preferences; and a policy against it', async () => {
  const [sums, mine, first, second] = ['sums.jsonl', 'mine.jsonl', 'first', 'second'].map((name) => join(temp, name));
  const lines = readFileSync('tasks/sums/train.jsonl', 'utf8').split('\n').slice(0, 60);
  writeFileSync(sums, lines.join('\n'));
  const preferences = Array.from({ length: 12 }, (_, i) => {
    return { prompt: question(`${i}+1`), chosen: `<answer>${i + 1}</answer>`, rejected: `${i + 1}` };
  });
  writeFileSync(mine, preferences.map((preference) => JSON.stringify(preference)).join('\n'));
  const script = 'experiment_reward_model/train_reward_model.ts';
  const flags = ['--held-out', '6', '--backend', BACKEND, '--batch-size', '4', '--epochs', '3'];
  const [compared, given] = await Promise.all([
    run(['--dataset', sums, '--output-dir', first, ...flags], { script }),
    run(['--preferences', mine, '--output-dir', second, ...flags], { script }),
  ]);
  expect([compared, given]).toMatchObject([
    { code: 0, stderr: '' },
    { code: 0, stderr: '' },
  ]);
  expect(given.stdout).toContain('agrees with 100.0 % of the held-out preferences');
  const folder = at('against it');
  const short = '--batch-size 4 --num-generations 4 --max-steps 2 --eval-size 0 --max-new-tokens 24 --backend';
  const trained = await run(['--reward-model', second, '--output-dir', folder, ...short.split(' '), BACKEND], {
    script: 'experiment_reward_model/train.ts',
  });
  expect(trained).toMatchObject({ code: 0, stderr: '' });
  // Another reward model under the same name would make another run of it.
  cpSync(join(first, 'model.safetensors'), join(second, 'model.safetensors'));
  const resumed = await run(['--resume', folder, '--max-steps', '3'], { script: 'experiment_reward_model/train.ts' });
  expect(resumed.code).toBe(2);
  expect(resumed.stderr).toMatch(/depends on .*second, whose model\.safetensors is no longer what it was: put it back/);
  const metrics = readMetrics(join(folder, 'metrics.jsonl'));
  expect(metrics[1].kl).toBeGreaterThan(0); // without any --kl-coef
  expect(mean(metrics.map(({ reward }) => Number(reward)))).not.toBeCloseTo(
    mean(metrics.map((entry) => Number(entry['rewards/accuracy/mean']))),
    2,
  );
});

it.each([
  ['{"prompt":"x","chosen":"a","rejected":"a"}', /:1: "chosen" and "rejected" are the same: there is no preference/],
  ['{"prompt":[1],"chosen":"a","rejected":"b"}', /:1: "prompt" must be a text or a list of .* found \[1\]/],
  ['{"prompt":"x","chosen":"","rejected":"b"}', /:1: "chosen" must be a text, found ""/],
])('refuses the preference %s', (line, message) => {
  const file = join(temp, 'wrong.jsonl');
  writeFileSync(file, line);
  expect(() => people.loadPreferences(file, 0)).toThrow(message);
});

it('puts a reward model where nothing is, before time is spent', async () => {
  const script = 'experiment_reward_model/train_reward_model.ts';
  const { code, stderr, stdout } = await run(['--output-dir', 'models/tiny'], { script });
  expect([code, stdout]).toEqual([2, '']);
  expect(stderr).toMatch(
    /^error: --output-dir models\/tiny holds something already: name a new folder, or remove it\n$/,
  );
});

it.each([
  ['a policy', 'models/tiny', 'architecture ["LlamaForCausalLM"] is not supported'],
  ['no model', 'models/none', 'models/none'],
])('refuses %s as a reward model before anything is written', async (_, name, sentence) => {
  const folder = at(`refused ${name}`);
  const { code, stderr } = await run(['--reward-model', name, '--output-dir', folder, '--backend', BACKEND], {
    script: 'experiment_reward_model/train.ts',
  });
  expect(code).toBe(2);
  expect(stderr).toContain(sentence);
  expect(existsSync(folder)).toBe(false);
});
