import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { describe, expect, it } from 'vitest';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { openSafetensors } from '../lib/checkpoint/safetensors.ts';
import { adamW, clippingFactor, createAdamW, globalNorm } from '../lib/training/adamw.ts';
import { accumulateGradients } from '../lib/training/gradients.ts';
import { completionLogProbs } from '../lib/training/log_probs.ts';
import { distance } from '../testing/policy.ts';
import { groupAdvantages, grpoLoss, type LossInputs, type LossOptions, statistics } from './train.ts';

/** What tiny-grpo and re-grpo compute (PyTorch 2.13), from random numbers. */
const FIXTURES = join(import.meta.dirname, 'fixtures');

const rowsOf = (values: number[][]) => tf.tensor2d(values);

/** |a − b| relative to |b|, in the Euclidean norm. */
const relativeError = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  const norm = (values: number[]) => Math.hypot(...values);
  return norm(Array.from(a, (value, i) => value - b[i])) / norm(Array.from(b));
};

/** Loss, gradient with respect to the log-probabilities, and statistics (with an entropy of 0 everywhere). */
function lossAndGradient({ logProbs, ...inputs }: LossInputs, options: LossOptions) {
  const lossOf = (x: tf.Tensor) => grpoLoss({ ...inputs, logProbs: x as tf.Tensor2D }, options);
  const { value, grad } = tf.valueAndGrad(lossOf)(logProbs);
  const sums = statistics({ ...inputs, logProbs }, tf.zerosLike(logProbs), options);
  const sum = (name: string) => sums[name].dataSync()[0];
  return { loss: value.dataSync()[0], gradient: [...grad.dataSync()], sum };
}

type LossCase = {
  impl: 'tiny-grpo' | 're-grpo:grpo' | 're-grpo:drgrpo';
  seed: number;
  clip_eps: number;
  kl_weight: number;
  generate_max_length: number;
  loss: number;
  kl: number;
} & Record<
  'returns' | 'advantages' | 'log_probs' | 'old_log_probs' | 'log_probs_ref' | 'action_mask' | 'grad_log_probs',
  number[][]
>;

describe("grpoLoss equals tiny-grpo's", () => {
  const { cases: all }: { cases: LossCase[] } = JSON.parse(readFileSync(join(FIXTURES, 'tiny_grpo_loss.json'), 'utf8'));
  const cases = all.filter(({ impl }) => impl !== 're-grpo:drgrpo'); // those are experiment_drgrpo's
  const named = cases.map((c) => [`${c.impl}, seed ${c.seed}, ε ${c.clip_eps}, β ${c.kl_weight}`, c] as const);
  const inputsOf = (c: LossCase, advantages: number[]): LossInputs => ({
    logProbs: rowsOf(c.log_probs),
    oldLogProbs: rowsOf(c.old_log_probs),
    refLogProbs: rowsOf(c.log_probs_ref),
    advantages: rowsOf(advantages.map((advantage) => [advantage])),
    mask: rowsOf(c.action_mask),
  });
  const optionsFor = (c: LossCase, completions: number) => ({
    clipRange: c.clip_eps,
    klCoef: c.kl_weight,
    completions,
  });

  it('has 36 cases', () => expect(cases).toHaveLength(36));

  it.each(named)('%s', (_, c) => {
    const [advantages] = groupAdvantages([c.returns.flat()]);
    expect(distance(advantages, c.advantages.flat())).toBeLessThan(1e-5);
    const { loss, gradient, sum } = lossAndGradient(inputsOf(c, advantages), optionsFor(c, c.returns.length));
    expect(Math.abs(loss - c.loss)).toBeLessThan(1e-5);
    expect(distance(gradient, c.grad_log_probs.flat())).toBeLessThan(1e-5);
    // Theirs is the mean over all positions, masked ones counted as zeros; ours is the sum over the masked tokens.
    expect(Math.abs(sum('kl') / gradient.length - c.kl)).toBeLessThan(1e-5);
  });
});

describe("four train steps equal tiny-grpo's with torch's Adam", () => {
  const read = async (file: string) => {
    const opened = await openSafetensors(file);
    const values = new Map<string, Float32Array>();
    for (const name of opened.tensors.keys()) values.set(name, await opened.read(name));
    await opened.close();
    return values;
  };

  const shared = join(import.meta.dirname, '../../shared/oracles');
  const absent = existsSync(shared) ? '' : ' (skipped: there is no ../shared/oracles)';
  const runs = [
    { oracle: join(FIXTURES, 'llama_grpo_adam'), checkpoint: 'lib/model/fixtures/llama_gqa_tied', skipped: '' },
    {
      oracle: join(shared, 'grpo/qwen3_grpo_adamw'),
      checkpoint: join(shared, 'hf/qwen3_qknorm_tied'),
      skipped: absent,
    },
  ];
  describe.each(runs)('$oracle $skipped', ({ oracle, checkpoint, skipped }) => {
    it.skipIf(skipped)('loss by loss, to the final weights', async () => {
      const run = JSON.parse(readFileSync(`${oracle}.json`, 'utf8'));
      // Our rows have no padding: the prompt is what is attended to and not an action, wherever it begins.
      const taken = (row: number, values: number[]) => values.filter((_, t) => run.action_mask[row][t]);
      const rows = (run.sequences as number[][]).map((tokens, row) => {
        const first = run.action_mask[row].indexOf(1) + 1; // action_mask[t] belongs to token t + 1
        const prompt = tokens.filter((_, t) => t < first && run.attention_mask[row][t]);
        return { prompt, completion: taken(row, tokens.slice(1)) };
      });
      const width = Math.max(...rows.map(({ completion }) => completion.length));
      const grid = (of: (row: number) => number[]) =>
        rowsOf(rows.map((_, row) => Array.from({ length: width }, (_, t) => of(row)[t] ?? 0)));
      const [advantages] = groupAdvantages([run.returns.flat()]);
      const inputs = {
        oldLogProbs: grid((row) => taken(row, run.old_log_probs[row])),
        refLogProbs: grid((row) => taken(row, run.ref_log_probs[row])),
        advantages: rowsOf(advantages.map((advantage) => [advantage])),
        mask: grid((row) => rows[row].completion.map(() => 1)),
      };
      const options = { clipRange: run.clip_eps, klCoef: run.kl_weight, completions: rows.length };

      const start = await loadCheckpoint(checkpoint);
      const reference = { config: start.config, params: { ...start.params } };
      for (const [name, values] of await read(`${oracle}.ref_model.safetensors`)) {
        reference.params[name] = tf.tensor(values, start.params[name].shape);
      }
      const refLogProbs = completionLogProbs(reference, rows, 1).logProbs.dataSync();
      expect(distance(refLogProbs, inputs.refLogProbs.dataSync())).toBeLessThan(1e-5);

      let { params } = start;
      let optimizer = createAdamW(params);
      for (const [i, step] of run.steps.entries()) {
        const { loss, gradients } = await accumulateGradients({ config: start.config, params }, [
          (current) => {
            const { logProbs } = completionLogProbs(current, rows, 1);
            const expected = grid((row) => taken(row, step.log_probs[row])).dataSync();
            expect(distance(logProbs.dataSync(), expected)).toBeLessThan(2e-5);
            return grpoLoss({ ...inputs, logProbs }, options);
          },
        ]);
        const norm = globalNorm(gradients).dataSync()[0];
        const gradientScale = clippingFactor(norm, run.max_grad_norm);
        expect(Math.abs(loss.dataSync()[0] - step.loss)).toBeLessThan(1e-5);
        expect(Math.abs(norm / step.grad_norm - 1)).toBeLessThan(1e-5);
        if (i === 0) {
          for (const [name, values] of await read(`${oracle}.clipped_grads_step0.safetensors`)) {
            const clipped = tf.mul(gradients[name], gradientScale).dataSync();
            expect(relativeError(clipped, values), name).toBeLessThan(1e-5);
          }
        }
        const adam = { gradientScale, learningRate: run.lr, weightDecay: run.weight_decay };
        ({ params, state: optimizer } = adamW(params, gradients, optimizer, adam));
      }
      for (const [name, values] of await read(`${oracle}.final.safetensors`)) {
        expect(relativeError(params[name].dataSync(), values), name).toBeLessThan(1e-5);
      }
      tf.disposeVariables();
    });
  });
});

describe('groupAdvantages', () => {
  it.each([
    [
      [1, 0, 0, 0],
      [1.5, -0.5, -0.5, -0.5],
    ],
    [
      [1, 0.5, 0.01, 0],
      [1.3074, 0.2573, -0.7719, -0.7929],
    ],
  ])('of %j: the standard deviation has n − 1', (rewards, expected) => {
    expect(distance(groupAdvantages([rewards])[0], expected)).toBeLessThan(5e-5);
  });

  it('of a flat group are exactly zero, where the mean is rounded too', () => {
    expect(
      groupAdvantages([
        [0.1, 0.1, 0.1],
        [1, 1, 1],
        [0, 0, 0],
      ]).flat(),
    ).toEqual(new Array(9).fill(0));
  });

  it('of one group do not depend on another', () => {
    const alone = groupAdvantages([[1, 0, 0.1]]);
    expect(
      groupAdvantages([
        [0.1, 0.1, 0],
        [1, 0, 0.1],
      ])[1],
    ).toEqual(alone[0]);
  });

  it('of a group of one are refused', () => {
    expect(() => groupAdvantages([[1]])).toThrow(RangeError);
  });
});

describe('grpoLoss', () => {
  const PPO = { clipRange: 0.2, klCoef: 0 };

  it('clips the ratio on the side that A improves', () => {
    const inputs = {
      logProbs: rowsOf([[-1.69315], [-1], [-0.59453]]),
      oldLogProbs: rowsOf([[-1], [-1], [-1]]),
      advantages: rowsOf([[1], [-1], [2]]),
      mask: rowsOf([[1], [1], [1]]),
    };
    const { loss, gradient, sum } = lossAndGradient(inputs, { ...PPO, completions: 3 });
    expect(loss).toBeCloseTo(-0.63333, 5);
    expect(gradient[2]).toBe(0); // ρ = 1.5 and A > 0: nothing more to gain
    // ρ = 0.5 with A > 0 is not clipped
    expect(['tokens', 'clip_ratio/low_mean', 'clip_ratio/high_mean'].map(sum)).toEqual([3, 0, 1]);
    // A wider upper range leaves the third token its gradient (DAPO's "clip higher").
    expect(lossAndGradient(inputs, { ...PPO, clipRangeHigh: 0.6, completions: 3 }).gradient[2]).toBeCloseTo(-1, 4);
  });

  it.each([
    [0.5, 0.148721, -0.64872],
    [-0.5, 0.106531, 0.39347],
  ])('adds β·k3: at d = %d it is %d, with gradient %d', (d, k3, slope) => {
    const one = (x: number) => rowsOf([[x]]);
    const inputs = {
      logProbs: one(-2),
      oldLogProbs: one(-2),
      refLogProbs: one(-2 + d),
      advantages: one(0),
      mask: one(1),
    };
    const { loss, gradient } = lossAndGradient(inputs, { ...PPO, klCoef: 1, completions: 1 });
    expect(loss).toBeCloseTo(k3, 6);
    expect(gradient[0]).toBeCloseTo(slope, 5);
  });

  it('takes the mean over the tokens of each completion first', () => {
    const inputs = {
      logProbs: tf.fill([2, 4], -1) as tf.Tensor2D,
      oldLogProbs: tf.fill([2, 4], -1) as tf.Tensor2D,
      advantages: rowsOf([[1], [-1]]),
      mask: rowsOf([
        [1, 1, 0, 0],
        [1, 1, 1, 1],
      ]),
    };
    const { loss, gradient } = lossAndGradient(inputs, { ...PPO, completions: 2 });
    expect(loss).toBe(0); // of all tokens alike it would be 1/3, with Dr. GRPO's constant 1/4
    expect(gradient).toEqual([-0.25, -0.25, -0, -0, 0.125, 0.125, 0.125, 0.125]);
  });

  it('does not look at padding: neither loss, gradient nor KL', () => {
    const of = (padding: number) =>
      lossAndGradient(
        {
          logProbs: rowsOf([
            [-1, -2, padding],
            [-1, padding, padding],
          ]),
          oldLogProbs: rowsOf([
            [-1.1, -2, 0],
            [-0.9, 0, 0],
          ]),
          refLogProbs: rowsOf([
            [-1.5, -2, 0],
            [-1, 0, 0],
          ]),
          advantages: rowsOf([[1], [-1]]),
          mask: rowsOf([
            [1, 1, 0],
            [1, 0, 0],
          ]),
        },
        { clipRange: 0.2, klCoef: 0.5, completions: 2 },
      );
    const real = of(0);
    const other = of(-3);
    expect(other.loss).toBe(real.loss);
    expect(distance(other.gradient, real.gradient)).toBe(0);
    for (const name of ['tokens', 'kl', 'clip_ratio/low_mean']) expect(other.sum(name)).toBe(real.sum(name));
    expect(real.sum('tokens')).toBe(3);
    expect(real.sum('kl')).toBeCloseTo(Math.exp(-0.5) + 0.5 - 1, 6); // of the only token off the reference
  });
});
