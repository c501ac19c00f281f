import * as tf from '@tensorflow/tfjs';
import { describe, expect, it } from 'vitest';
import { parseOptions } from '../lib/cli/options.ts';
import { finiteReward } from '../lib/environments/reward.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import type { TrainingState } from '../lib/training/state.ts';
import {
  distance,
  drawsOf,
  experience,
  model,
  newState,
  offPolicy,
  optionsOf,
  PROBLEMS,
  SMALL,
  sample,
  tokenizer,
} from '../testing/policy.ts';
import type * as Base from './train.ts';
import { type Experience, evaluate, rollout, toExperience, update, updateOnce } from './train.ts';

/** The gradient of the only update that a state has seen: Adam's first moment is (1 − β1) of it. */
const gradientOf = (state: TrainingState) =>
  Object.fromEntries(
    Object.entries(state.optimizer.m).map(([name, m]) => [name, [...m.dataSync()].map((x) => x * 10)]),
  );

describe('update', () => {
  it('has at μ = 1 a loss of about 0, and a gradient that is not', async () => {
    const options = optionsOf(...SMALL, '--temperature', '0.7');
    const rollouts = (await sample(options)).map((row, i) => ({ ...row, advantage: i % 2 === 0 ? 1 : -1 }));
    const metrics = await update(await newState(), rollouts, 1, options);
    expect(Math.abs(metrics.loss)).toBeLessThan(1e-6);
    expect(metrics.grad_norm).toBeGreaterThan(0.1);
    expect(metrics).toMatchObject({ 'clip_ratio/low_mean': 0, 'clip_ratio/high_mean': 0, skipped_updates: 0 });
    expect(metrics['sampling/logp_difference_max']).toBeLessThan(1e-5);
  });

  it('says how far the log-probs are from those that were recorded: the farthest of the first update', async () => {
    const rollouts = await sample(optionsOf(...SMALL));
    rollouts[5].oldLogProbs[2] -= 0.25;
    rollouts[6].oldLogProbs[1] += 0.5;
    const experience = rollouts.map((row) => ({ ...row, advantage: 0 }));
    for (const flags of [[], ['--micro-batch-tokens', '1'], ['--num-iterations', '2']]) {
      const metrics = await update(await newState(), experience, 1, optionsOf(...SMALL, ...flags));
      expect(metrics['sampling/logp_difference_max']).toBeCloseTo(0.5, 4);
    }
  });

  it.each([
    ['micro-batches', ['--micro-batch-tokens', '1']],
    ['micro-batches of unequal lengths', ['--micro-batch-tokens', '30']],
    ['mini-batches × accumulation', ['--mini-batch-size', '2', '--gradient-accumulation-steps', '4']],
  ])('does not depend on the split into %s', async (_, flags) => {
    const whole = optionsOf(...SMALL, '--kl-coef', '0.1');
    const rollouts = await offPolicy(whole);
    expect(new Set(rollouts.map(({ completion }) => completion.length)).size).toBeGreaterThan(1);
    const [a, b] = [await newState(), await newState()];
    const expected = await update(a, rollouts, 1, whole);
    const metrics = await update(b, rollouts, 1, optionsOf(...SMALL, '--kl-coef', '0.1', ...flags));
    for (const name of ['loss', 'grad_norm', 'kl', 'entropy']) expect(metrics[name]).toBeCloseTo(expected[name], 5);
    const gradient = gradientOf(a);
    for (const [name, values] of Object.entries(gradientOf(b))) {
      expect(distance(values, gradient[name]), name).toBeLessThan(1e-5);
    }
  });

  it.each(['drgrpo', 'rloo', 'dapo', 'gspo', 'cispo'])('of experiment_%s does not either', async (variant) => {
    const { createCommand, update: itsUpdate }: typeof Base = await import(`../experiment_${variant}/train.ts`);
    const parse = (...flags: string[]) =>
      parseOptions(createCommand(), ['node', 'train.ts', ...SMALL, '--kl-coef', '0.1', ...flags]);
    const rollouts = await offPolicy(parse());
    const [a, b] = [await newState(), await newState()];
    const expected = await itsUpdate(a, rollouts, 1, parse());
    const metrics = await itsUpdate(b, rollouts, 1, parse('--micro-batch-tokens', '30'));
    for (const [name, value] of Object.entries(expected)) {
      expect(Math.abs(metrics[name] - value), name).toBeLessThan(1e-5 * Math.max(1, Math.abs(value)));
    }
    const gradient = gradientOf(a);
    for (const [name, values] of Object.entries(gradientOf(b))) {
      expect(distance(values, gradient[name]), name).toBeLessThan(1e-5);
    }
  });

  it.each([
    [1, 0, 1, 1],
    [1, 2, 1, 4],
    [2, 4, 1, 4],
    [3, 2, 2, 6],
  ])('loses no window: μ %d, mini-batch %d × %d makes %d updates of 8 completions', async (mu, mini, acc, updates) => {
    const state = await newState();
    const sizes = ['--num-iterations', mu, '--mini-batch-size', mini, '--gradient-accumulation-steps', acc].map(String);
    const options = optionsOf(...SMALL, ...sizes);
    await update(state, await offPolicy(options), 1, options);
    expect(state.optimizer.step).toBe(updates);
  });

  it('uses every completion once in each iteration', async () => {
    const options = optionsOf(...SMALL, '--num-iterations', '2', '--mini-batch-size', '2');
    const seen: number[] = [];
    const rollouts = (await offPolicy(options)).map((row, i) => ({
      ...row,
      get oldLogProbs() {
        seen.push(i);
        return row.oldLogProbs;
      },
    }));
    await update(await newState(), rollouts, 1, options);
    const sorted = (order: number[]) => [...order].sort();
    expect([sorted(seen.slice(0, 8)), sorted(seen.slice(8))]).toEqual([
      sorted([...rollouts.keys()]),
      sorted([...rollouts.keys()]),
    ]);
    expect(seen.slice(0, 8)).not.toEqual(seen.slice(8)); // shuffled anew
  });

  it('needs no reference at β = 0, and reports no KL', async () => {
    const options = optionsOf(...SMALL);
    const rollouts = await experience(options);
    expect(rollouts.every(({ refLogProbs }) => refLogProbs === undefined)).toBe(true);
    expect(await update(await newState(), rollouts, 1, options)).not.toHaveProperty('kl');
  });

  it('reports the KL as the mean over real tokens', async () => {
    const options = optionsOf(...SMALL, '--kl-coef', '0.1');
    const rollouts = await offPolicy(options);
    const k3 = rollouts.flatMap(({ completion }, i) =>
      completion.map((_, t) => {
        const d = 0.3 * Math.cos(i * t);
        return Math.exp(d) - d - 1;
      }),
    );
    const { kl } = await update(await newState(), rollouts, 1, options);
    expect(kl).toBeCloseTo(k3.reduce((sum, x) => sum + x) / k3.length, 5);
  });

  it('follows the gradient that finite differences give, through the whole model', async () => {
    const options = optionsOf(...SMALL, '--kl-coef', '0.1', '--temperature', '0.7');
    const rollouts = await offPolicy(options);
    const state = await newState();
    await updateOnce(state, rollouts, 0, options);
    const gradients = gradientOf(state);
    for (const name of [
      'model.embed_tokens.weight',
      'model.layers.0.self_attn.k_proj.weight',
      'model.layers.0.mlp.gate_proj.weight',
      'model.layers.1.self_attn.q_proj.weight',
      'model.layers.1.input_layernorm.weight',
      'lm_head.weight',
    ]) {
      const norm = Math.hypot(...gradients[name]);
      const lossAt = async (h: number) => {
        const moved = await newState();
        const direction = tf.tensor(gradients[name], model.params[name].shape).div(norm);
        moved.model.params[name] = model.params[name].add(direction.mul(h));
        return (await updateOnce(moved, rollouts, 0, options)).loss;
      };
      const h = 0.01;
      const slope = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h);
      expect(Math.abs(slope / norm - 1), name).toBeLessThan(0.01);
    }
  });

  it('leaves no tensor behind, skipped updates included', async () => {
    const options = optionsOf(...SMALL, '--num-iterations', '2', '--kl-coef', '0.1', '--micro-batch-tokens', '30');
    const state = await newState();
    const live: number[] = [];
    for (let step = 1; step <= 4; step++) {
      const rollouts = await rollout(state.model, tokenizer, PROBLEMS, drawsOf(options, step), options);
      const rows = rollouts.map((row) => ({
        ...row,
        advantage: step === 3 ? Number.NaN : 1,
        refLogProbs: row.oldLogProbs,
      }));
      await update(state, rows, step, options);
      live.push(tf.memory().numTensors);
    }
    expect(live).toEqual(new Array(4).fill(live[0]));
  });

  it('needs no more memory after 200 steps than after 50', async () => {
    const options = optionsOf(...SMALL, '--max-steps', '200');
    const state = await newState();
    const used: (number | undefined)[][] = [];
    for (let step = 1; step <= 200; step++) {
      const rollouts = await rollout(state.model, tokenizer, PROBLEMS, drawsOf(options, step), options);
      await update(state, await toExperience(rollouts, undefined, options), step, options);
      if (step % 50 === 0) await evaluate(state.model, tokenizer, PROBLEMS, { samples: 2 }, options);
      const { wasm } = tf.backend() as unknown as { wasm?: { HEAPU8: Uint8Array } };
      if (step % 50 === 0) used.push([tf.memory().numTensors, tf.memory().numBytes, wasm?.HEAPU8.length]);
    }
    expect(used).toEqual(new Array(4).fill(used[0]));
  });

  it('skips a loss that is not finite, counts it, and gives up after ten in a row', async () => {
    const options = optionsOf(...SMALL);
    const good = await offPolicy(options);
    const bad = good.map((row, i) => (i === 3 ? { ...row, advantage: Number.NaN } : row));
    const state = await newState();
    const before = state.model.params;
    const once = (rows: Experience[]) => update(state, rows, 1, options);
    for (let i = 1; i <= 9; i++) {
      expect(await once(bad)).toMatchObject({ skipped_updates: i });
      expect(state.counters.skippedInARow).toBe(i);
    }
    expect(state.model.params).toBe(before);
    expect(state.optimizer.step).toBe(0);
    expect(await once(good)).toMatchObject({ skipped_updates: 9 });
    expect(state.counters.skippedInARow).toBe(0); // the count starts again
    expect(new Set(state.notes?.splice(0))).toEqual(
      new Set([
        'an update was skipped: the loss is NaN: log-probs of the policy are not finite, or too far from those it sampled with',
      ]),
    );
    const flat = good.map((row) => ({ ...row, advantage: 0 }));
    for (let i = 1; i <= 9; i++) {
      await once(bad);
      await once(flat); // its gradient is zero: it shows nothing
    }
    await expect(once(bad)).rejects.toThrow(
      /^10 updates were skipped and none made between them, the last because the loss is NaN.*--learning-rate/,
    );
  });

  it('says that a gradient overflowed where the loss did not', async () => {
    const state = await newState();
    const { params } = state.model;
    const gradients = Object.fromEntries(
      Object.entries(params).map(([name, { shape }]) => [name, tf.fill(shape, 1e38)]),
    );
    const step = { learningRate: 1, weightDecay: 0, maxGradNorm: 1 };
    expect(await optimizerStep(state, { loss: tf.scalar(1), gradients }, step)).toMatchObject({ finite: false });
    expect(state.notes).toEqual(['an update was skipped: the gradient overflows, its norm is Infinity']);
    expect(state.model.params).toBe(params);
  });

  it('stops at a reward that is not finite, and names the question', async () => {
    const line = (reward: number) => finiteReward(reward, { question: '47+38\n' });
    expect(line(0.5)).toBe(0.5);
    for (const reward of [Number.NaN, Number.POSITIVE_INFINITY, undefined as unknown as number]) {
      expect(() => line(reward)).toThrow(
        `a reward must be a finite number, found ${reward} for a completion of "47+38\\n"`,
      );
    }
  });
});
