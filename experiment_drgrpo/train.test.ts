import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { beforeAll, describe, expect, it } from 'vitest';
import * as base from '../experiment_base/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { useBackend } from '../testing/backend.ts';
import { distance } from '../testing/distance.ts';
import { absent, trlCases } from '../testing/trl_losses.ts';
import { createCommand, groupAdvantages, grpoLoss, type LossInputs, type Options, statistics } from './train.ts';

beforeAll(useBackend);

const optionsOf = (flags = ''): Options =>
  parseOptions(createCommand(), ['node', 'train.ts', ...flags.split(' ').filter(Boolean)]);
const DRGRPO = optionsOf();
const GRPO = optionsOf('--critic-type grpo');

const rowsOf = (values: number[][]) => tf.tensor2d(values);

type LossOptions = Parameters<typeof grpoLoss>[1];

/** Loss, its gradient with respect to the log-probabilities, and the statistics. */
function lossAndGradient(
  logProbs: number[][],
  inputsOf: (logProbs: tf.Tensor2D) => LossInputs,
  options: LossOptions,
  loss = grpoLoss,
) {
  const current = rowsOf(logProbs);
  const { value, grad } = tf.valueAndGrad((x) => loss(inputsOf(x as tf.Tensor2D), options))(current);
  const sums = statistics(inputsOf(current), tf.zerosLike(current), options);
  const perToken = (name: string) => sums[name].dataSync()[0] / sums.tokens.dataSync()[0];
  return { loss: value.dataSync()[0], gradient: [...grad.dataSync()], perToken };
}

describe("the loss equals re-grpo's and tiny-grpo's", () => {
  type Case = {
    impl: string;
    seed: number;
    clip_eps: number;
    kl_weight: number;
    generate_max_length: number;
    loss: number;
  } & Record<
    'returns' | 'advantages' | 'log_probs' | 'old_log_probs' | 'log_probs_ref' | 'action_mask' | 'grad_log_probs',
    number[][]
  >;
  const file = join(import.meta.dirname, '../experiment_base/fixtures/tiny_grpo_loss.json');
  const { cases }: { cases: Case[] } = JSON.parse(readFileSync(file, 'utf8'));

  it('has 18 cases of Dr. GRPO among 54', () => {
    expect(cases.map(({ impl }) => impl === 're-grpo:drgrpo').filter(Boolean)).toHaveLength(18);
    expect(cases).toHaveLength(54);
  });

  it.each(cases.map((c) => [`${c.impl}, seed ${c.seed}, ε ${c.clip_eps}, β ${c.kl_weight}`, c] as const))(
    '%s',
    (_, c) => {
      const variant = c.impl === 're-grpo:drgrpo' ? DRGRPO : GRPO;
      const [advantages] = groupAdvantages([c.returns.flat()], variant);
      expect(distance(advantages, c.advantages.flat())).toBeLessThan(1e-5);
      const { loss, gradient } = lossAndGradient(
        c.log_probs,
        (logProbs) => ({
          logProbs,
          oldLogProbs: rowsOf(c.old_log_probs),
          refLogProbs: rowsOf(c.log_probs_ref),
          advantages: rowsOf(advantages.map((a) => [a])),
          mask: rowsOf(c.action_mask),
        }),
        {
          ...{ ...variant, clipRange: c.clip_eps, klCoef: c.kl_weight },
          ...{ completions: c.returns.length, maxNewTokens: c.generate_max_length },
        },
      );
      expect(Math.abs(loss - c.loss)).toBeLessThan(1e-5);
      expect(distance(gradient, c.grad_log_probs.flat())).toBeLessThan(1e-5);
    },
  );
});

describe(`the loss equals TRL's${absent}`, () => {
  const cases = trlCases(({ loss_type }) => /^(dr_)?grpo$/.test(loss_type));
  if (cases.length === 0) it.skip('its numbers are in ../shared/oracles, which is not there');

  it.each(cases)('%s', (_, c) => {
    const { loss, gradient, perToken } = lossAndGradient(
      c.log_probs,
      (x) => {
        const mask = rowsOf(c.completion_mask);
        const [old, reference] = [rowsOf(c.old_log_probs), rowsOf(c.log_probs_ref)];
        // Its cases of dr_grpo have one ratio for a whole sequence: the mean of the tokens' log-ratios. As tensors may
        // be anything, such log-probabilities can be given to our loss, with a reference that leaves the KL as it is.
        const mean = tf.div(tf.sum(tf.mul(tf.sub(x, old), mask), 1, true), tf.sum(mask, 1, true));
        const logProbs = c.importance_sampling_level === 'token' ? x : tf.add(old, mean);
        const refLogProbs = c.beta > 0 ? tf.add(tf.sub(reference, x), logProbs) : undefined;
        const advantages = rowsOf(c.advantages.map((a) => [a]));
        return { logProbs, oldLogProbs: old, refLogProbs, advantages, mask } as LossInputs;
      },
      {
        ...{ ...(c.loss_type === 'grpo' ? GRPO : DRGRPO), klCoef: c.beta, completions: c.advantages.length },
        ...{ clipRange: c.epsilon_low, clipRangeHigh: c.epsilon_high, maxNewTokens: c.max_completion_length },
      },
    );
    expect(Math.abs(loss - c.loss)).toBeLessThan(1e-5);
    expect(distance(gradient, c.grad_log_probs.flat())).toBeLessThan(1e-5);
    if (c.importance_sampling_level === 'sequence') return;
    expect(perToken('clip_ratio/low_mean')).toBeCloseTo(c.metrics['clip_ratio/low_mean'], 6);
    expect(perToken('clip_ratio/high_mean')).toBeCloseTo(c.metrics['clip_ratio/high_mean'], 6);
    if (c.beta > 0) expect(perToken('kl')).toBeCloseTo(c.metrics.kl, 5);
  });
});

describe('groupAdvantages', () => {
  it('are rewards above the mean of the group, whatever its spread', () => {
    expect(groupAdvantages([[1, 0, 0, 0]], DRGRPO)).toEqual([[0.75, -0.25, -0.25, -0.25]]);
    // The question that half of the group solves gets the larger advantages; with std it is the other way round.
    const groups = [
      [1, 0, 0, 0, 0, 0, 0, 0],
      [1, 1, 1, 1, 0, 0, 0, 0],
    ];
    const size = (options: Options) => groupAdvantages(groups, options).map((group) => Math.max(...group));
    expect(size(DRGRPO)).toEqual([0.875, 0.5]);
    expect(size(GRPO)[0]).toBeCloseTo(2.4749, 4);
    expect(size(GRPO)[1]).toBeCloseTo(0.9354, 4);
  });

  it('of a flat group are exactly zero, where the mean is rounded too', () => {
    for (const options of [DRGRPO, GRPO]) expect(groupAdvantages([[0.1, 0.1, 0.1]], options)).toEqual([[0, 0, 0]]);
  });

  it('of a group of one are refused', () => {
    expect(() => groupAdvantages([[1]], DRGRPO)).toThrow(RangeError);
  });
});

describe('the two normalisations', () => {
  /** A right answer of 2 tokens and a wrong one of 4, on-policy, of at most 4 tokens. */
  const gradientOf = (flags: string) => {
    const options = optionsOf(`${flags} --max-new-tokens 4`);
    const [advantages] = groupAdvantages([[1, 0]], options);
    const ones = (x: number[][]) => x.map((row) => row.map(() => -1));
    const mask = [
      [1, 1, 0, 0],
      [1, 1, 1, 1],
    ];
    const inputsOf = (logProbs: tf.Tensor2D) => ({
      ...{ logProbs, oldLogProbs: rowsOf(ones(mask)), mask: rowsOf(mask) },
      advantages: rowsOf(advantages.map((a) => [a])),
    });
    return lossAndGradient(ones(mask), inputsOf, { ...options, completions: 2 });
  };

  it.each([
    // Right answer, wrong answer, and the loss: each token's gradient is −A / (rows · divisor).
    ['--critic-type drgrpo', -0.5 / 8, 0.5 / 8, 0.125],
    ['--critic-type grpo', -Math.SQRT1_2 / 4, Math.SQRT1_2 / 8, 0],
    ['--length-normalization completion', -0.5 / 4, 0.5 / 8, 0],
    ['--advantage-normalization std', -Math.SQRT1_2 / 8, Math.SQRT1_2 / 8, 0.25 * Math.SQRT1_2],
    ['--critic-type grpo --length-normalization constant', -Math.SQRT1_2 / 8, Math.SQRT1_2 / 8, 0.25 * Math.SQRT1_2],
    ['--critic-type grpo --advantage-normalization none', -0.5 / 4, 0.5 / 8, 0],
  ])('%s', (flags, right, wrong, expected) => {
    const { loss, gradient } = gradientOf(flags);
    expect(distance(gradient, [right, right, 0, 0, wrong, wrong, wrong, wrong])).toBeLessThan(1e-7);
    expect(loss).toBeCloseTo(expected, 6);
  });

  it('with both, loss and advantages are those of experiment_base, to the last bit', () => {
    const rewards = [
      [1, 0.1, 0, 1],
      [0.1, 0.1, 0.1, 0.1],
      [0, 0, 1, 0],
    ];
    expect(groupAdvantages(rewards, GRPO)).toEqual(base.groupAdvantages(rewards));
    const grid = (of: (row: number, t: number) => number) =>
      Array.from({ length: 12 }, (_, row) => Array.from({ length: 7 }, (_, t) => of(row, t)));
    const inputsOf = (logProbs: tf.Tensor2D) => ({
      logProbs,
      oldLogProbs: rowsOf(grid((row, t) => -1 - Math.abs(Math.sin(row * t)))),
      refLogProbs: rowsOf(grid((row, t) => -1 - Math.abs(Math.cos(row + t)))),
      advantages: rowsOf(
        groupAdvantages(rewards, GRPO)
          .flat()
          .map((a) => [a]),
      ),
      mask: rowsOf(grid((row, t) => Number(t <= row % 7))),
    });
    const logProbs = grid((row, t) => -1.2 - Math.sin(row - t));
    const options = { ...GRPO, klCoef: 0.04, completions: 12 };
    const own = lossAndGradient(logProbs, inputsOf, options);
    const its = lossAndGradient(logProbs, inputsOf, options, base.grpoLoss);
    expect([own.loss, own.gradient]).toEqual([its.loss, its.gradient]);
  });
});
