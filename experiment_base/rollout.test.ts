import * as tf from '@tensorflow/tfjs';
import { describe, expect, it } from 'vitest';
import { createLora, LORA_TARGETS } from '../lib/model/lora.ts';
import { normals } from '../lib/random.ts';
import { mean } from '../lib/statistics.ts';
import { completionLogProbs, logProbsOf } from '../lib/training/log_probs.ts';
import { TOKEN_IDS } from '../models/tiny/tokenizer.ts';
import {
  distance,
  drawsOf,
  model,
  newState,
  optionsOf,
  PROBLEMS,
  SMALL,
  sample,
  tokenizer,
} from '../testing/policy.ts';
import { groupAdvantages, reward, rollout, rolloutMetrics, toExperience, updateOnce, verdict } from './train.ts';

describe('reward', () => {
  it.each([
    ['<think>1+2=3</think><answer>3</answer>', '3', 1, 'right'],
    ['<answer>3</answer>', '3', 1, 'without working'],
    ['<answer>4</answer>', '3', 0.1, 'wrong'],
    ['3', '3', 0, 'no tags'],
    ['', '3', 0, 'nothing'],
    ['<answer>3', '3', 0, 'no closing tag'],
    ['3</answer>', '3', 0, 'no opening tag'],
    ['<answer>4</answer><answer>3</answer>', '3', 1, 'the last of two counts'],
    ['<answer>3</answer><answer>4</answer>', '3', 0.1, 'the last of two counts'],
    ['<answer>3</answer><answer>4', '3', 1, 'the last that is closed'],
    ['<answer>\n3\n</answer>', '3', 1, 'line breaks inside the tags'],
    ['<answer></answer>', '3', 0, 'an empty answer is none'],
    ['<answer></answer>', '0', 0, 'an empty answer is none, not 0'],
    ['<answer>3 or 4</answer>', '3', 0.1, 'two guesses'],
    ['<answer>eval(3)</answer>', '3', 0.1, 'code is no number'],
  ])('%j for %j: %d (%s)', (text, answer, expected) => {
    expect(reward(text, { answer }, optionsOf())).toBe(expected);
    expect(verdict(text, { answer })).toBe({ 1: 'right', 0.1: 'wrong', 0: 'missing' }[expected]);
  });
});

describe('rollout', () => {
  it('is grouped by position, even when two prompts of a step are equal', async () => {
    const options = optionsOf(...SMALL, '--max-new-tokens', '24');
    const same = await sample(options, 1, new Array(6).fill(PROBLEMS[0]));
    const rollouts = await toExperience(same, undefined, options);
    const groups = Array.from({ length: 6 }, (_, p) => rollouts.slice(4 * p, 4 * p + 4));
    const rewards = groups.map((group) => group.map((row) => row.reward));
    expect(new Set(rewards.map((group) => [...group].sort().join())).size).toBeGreaterThan(1); // else this shows nothing
    expect(groups.map((group) => group.map((row) => row.advantage))).toEqual(groupAdvantages(rewards));
  });

  it('says which answers are right, apart from the reward', async () => {
    const options = optionsOf(...SMALL, '--max-new-tokens', '24');
    const problems = new Array(6).fill(PROBLEMS[0]);
    const given = (await sample(options, 1, problems)).map(({ text }) =>
      /<answer>(.+)<\/answer>/s.exec(text)?.[1].trim(),
    );
    const answer = given.find(Boolean)!;
    const rollouts = await sample(
      options,
      1,
      problems.map((problem) => ({ ...problem, answer })),
    );
    expect(rollouts.filter(({ verdict }) => verdict === 'right').length).toBeGreaterThan(0);
    expect(rollouts.map(({ verdict }) => verdict)).toEqual(rollouts.map((row) => verdict(row.text, row.problem)));
  });

  it('gives every prompt, sample, step and seed random numbers of its own', async () => {
    const options = optionsOf(...SMALL);
    const same = [PROBLEMS[0], PROBLEMS[0]];
    const rollouts = [
      ...(await sample(options, 1, same)),
      ...(await sample(options, 2, same)),
      ...(await sample({ ...options, seed: 1 }, 1, same)),
    ];
    expect(new Set(rollouts.map(({ completion }) => completion.join())).size).toBe(24);
    // A first token shared by the whole group is another mistake of the field.
    expect(new Set(rollouts.slice(0, 4).map(({ completion }) => completion[0])).size).toBeGreaterThan(1);
  });

  it('draws the same whatever else is in the batch', async () => {
    const options = optionsOf(...SMALL);
    const alone = await sample(options, 1, PROBLEMS.slice(0, 1));
    const both = await sample(options, 1, PROBLEMS);
    expect(both.slice(0, 4).map(({ completion }) => completion)).toEqual(alone.map(({ completion }) => completion));
  });

  it.each([
    ['--temperature', '1'],
    ['--temperature', '0.7'],
    ['--top-k', '5'],
    ['--top-p', '0.5', '--temperature', '1.3'],
  ])('records what training recomputes: the ratio is 1 within 1e-5 (%s %s %s %s)', async (...flags) => {
    const options = optionsOf(...SMALL, ...flags.filter(Boolean));
    const rollouts = await sample(options);
    const { logProbs } = tf.tidy(() => completionLogProbs(model, rollouts, options.temperature));
    const ratios = rollouts.flatMap(({ oldLogProbs }, row) => {
      const now = logProbs.arraySync()[row];
      return oldLogProbs.map((old, t) => Math.exp(now[t] - old));
    });
    expect(distance(ratios, new Array(ratios.length).fill(1))).toBeLessThan(1e-5);
  });

  it('and so it is with an adapter, which is merged for sampling only', async () => {
    const settings = { rank: 4, alpha: 8, targets: [...LORA_TARGETS], seed: 3, base: '' };
    const lora = createLora(model.config, settings);
    for (const [name, { size, shape }] of Object.entries(lora.params)) {
      if (!name.includes('lora_B')) continue;
      lora.params[name].dispose();
      lora.params[name] = tf.tensor(normals(size, 5, size), shape).mul(0.2); // a new one is zero
    }
    const adapted = { ...model, lora };
    const options = optionsOf(...SMALL);
    const rollouts = await rollout(adapted, tokenizer, PROBLEMS, drawsOf(options, 1), options);
    expect(rollouts.map(({ text }) => text)).not.toEqual((await sample(options)).map(({ text }) => text));
    const now = await logProbsOf(adapted, rollouts, options);
    const ratios = rollouts.flatMap(({ oldLogProbs }, row) => oldLogProbs.map((old, t) => Math.exp(now[row][t] - old)));
    expect(distance(ratios, new Array(ratios.length).fill(1))).toBeLessThan(1e-5);
    tf.dispose(lora.params);
  });

  it.each([
    ['', TOKEN_IDS.eos],
    [' that is the padding token too', TOKEN_IDS.pad],
  ])('ends with an EOS%s, which is trained on, and nothing after it', async (_, eos) => {
    const ending = { ...model, config: { ...model.config, eosTokenIds: [eos] } };
    const options = optionsOf(...SMALL, '--max-new-tokens', '40');
    const rollouts = await rollout(ending, tokenizer, PROBLEMS, drawsOf(options, 1), options);
    expect(new Set(rollouts.map((row) => row.finishReason))).toEqual(new Set(['stop', 'length']));
    for (const { completion, oldLogProbs, finishReason } of rollouts) {
      expect(completion.indexOf(eos)).toBe(finishReason === 'stop' ? completion.length - 1 : -1);
      expect(oldLogProbs).toHaveLength(completion.length);
    }
    const state = await newState();
    const { sums } = await updateOnce(state, await toExperience(rollouts, undefined, options), 0, options);
    expect(sums.tokens).toBe(rollouts.reduce((sum, { completion }) => sum + completion.length, 0));
    tf.dispose([state.model.params, state.optimizer.m, state.optimizer.v]);
  });

  it('is summed up group by group', async () => {
    const rollouts = (await sample(optionsOf(...SMALL))).map((row, i) => ({
      ...{ ...row, reward: [1, 0, 0, 0][i] ?? 0.1, verdict: i >= 6 ? ('right' as const) : ('wrong' as const) }, // whatever the reward
    }));
    const metrics = rolloutMetrics(rollouts, optionsOf(...SMALL));
    expect(metrics.reward).toBeCloseTo(1.4 / 8, 12);
    expect(metrics.reward_std).toBeCloseTo(0.25, 12); // 0.5 and 0
    expect(metrics.frac_reward_zero_std).toBe(0.5);
    expect(metrics['rewards/accuracy/mean']).toBe(2 / 8);
    const length = (rows: typeof rollouts) => mean(rows.map(({ completion }) => completion.length));
    expect(metrics['completions/mean_right_length']).toBe(length(rollouts.slice(6)));
    expect(metrics['completions/mean_wrong_length']).toBe(length(rollouts.slice(0, 6)));
  });
});
