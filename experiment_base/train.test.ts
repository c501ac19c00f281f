import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
// biome-ignore format: a list to skip, not to read
import {
  accumulateGradients, adamW, type BackendName, clipByGlobalNorm, createAdamW, createTrainingState, initBackend,
  type LlamaConfig, loadCheckpoint, loadTokenizer, type Model, normals, openSafetensors, type Problem, parameterShapes,
  parseOptions, scoreCompletions, type Tokenizer, type TrainingState, UserError,
} from '../lib/index.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from '../models/tiny/tokenizer.ts';
// biome-ignore format: a list to skip, not to read
import {
  createCommand, evaluate, groupAdvantages, grpoLoss, type LossInputs, type LossOptions, type Options, type Rollout,
  reward, rollout, rolloutMetrics, sameAnswer, update, updateOnce,
} from './train.ts';

/** What tiny-grpo and re-grpo compute (PyTorch 2.13), from random numbers. */
const FIXTURES = join(import.meta.dirname, 'fixtures');

const optionsOf = (...flags: string[]): Options => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
const SMALL = '--num-generations 4 --max-new-tokens 12 --warmup-steps 0 --max-grad-norm 0'.split(' ');
const PROBLEMS: Problem[] = [
  { question: '1+2', answer: '3', source: '' },
  { question: '40+25-3', answer: '62', source: '' },
];

/** A Llama with random weights that often says <answer>, </answer> and the end of text, so that rewards differ. */
function randomModel(): Model {
  const config: LlamaConfig = {
    ...{ vocabSize: VOCABULARY_SIZE, hiddenSize: 32, intermediateSize: 64, numLayers: 2, numHeads: 4, numKvHeads: 2 },
    ...{ headDim: 8, rmsNormEps: 1e-5, ropeTheta: 10_000, ropeScaling: null, maxPositionEmbeddings: 64 },
    ...{ tieWordEmbeddings: false, bosTokenId: null, eosTokenIds: [TOKEN_IDS.eos], torchDtype: 'float32' },
    ...{ biases: { qkv: false, o: false, mlp: false }, qkNorm: false },
  };
  const params = Object.entries(parameterShapes(config)).map(([name, shape], i) => {
    if (shape.length === 1) return [name, tf.ones(shape)];
    const values = normals(shape[0] * shape[1], 0, i).map((value) => 0.2 * value);
    // Column 0 is a constant input, and the LM head's column 0 thereby a bias.
    const biases: Record<number, number> = { [TOKEN_IDS.eos]: 1.6, 7: 2.5, 8: 2.5 };
    for (let row = 0; row < shape[0]; row++) {
      if (name === 'model.embed_tokens.weight') values[row * shape[1]] = 1;
      if (name === 'lm_head.weight') values[row * shape[1]] = biases[row] ?? 0;
    }
    return [name, tf.tensor(values, shape)];
  });
  return { config, params: Object.fromEntries(params) };
}

let model: Model;
let tokenizer: Tokenizer;
beforeAll(async () => {
  await initBackend((process.env.TFJS_BACKEND as BackendName) ?? 'wasm');
  model = randomModel();
  const folder = mkdtempSync(join(tmpdir(), 'grpo-'));
  writeTokenizer(folder);
  tokenizer = await loadTokenizer(folder);
  rmSync(folder, { recursive: true });
});
afterAll(() => void tf.dispose(model.params));

const newState = () => createTrainingState(model, { tokens: 0, skipped: 0, skippedInARow: 0 });
const sample = (options: Options, step = 1, problems = PROBLEMS) =>
  rollout(model, tokenizer, problems, { ...options, step });

/** Rollouts whose advantages differ, and whose π_old and reference are somewhat off the policy. */
async function offPolicy(options: Options): Promise<Rollout[]> {
  const rollouts = await sample(options);
  return rollouts.map((row, i) => ({
    ...row,
    advantage: [1.5, -0.5, -1.2, 0.2, 0.9, -0.7, 0.4, -0.6][i],
    oldLogProbs: row.oldLogProbs.map((logProb, t) => logProb + 0.1 * Math.sin(i + t)),
    refLogProbs: row.oldLogProbs.map((logProb, t) => logProb + 0.3 * Math.cos(i * t)),
  }));
}

/** The gradient of the only update that a state has seen: Adam's first moment is (1 − β1) of it. */
const gradientOf = (state: TrainingState) =>
  Object.fromEntries(
    Object.entries(state.optimizer.m).map(([name, m]) => [name, [...m.dataSync()].map((x) => x * 10)]),
  );

const rowsOf = (values: number[][]) => tf.tensor2d(values);

/** Largest |a − b|. */
const distance = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  return Array.from(a).reduce((worst, value, i) => Math.max(worst, Math.abs(value - b[i])), 0);
};

/** |a − b| relative to |b|, in the Euclidean norm. */
const relativeError = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  expect(a.length).toBe(b.length);
  const norm = (values: number[]) => Math.hypot(...values);
  return norm(Array.from(a, (value, i) => value - b[i])) / norm(Array.from(b));
};

/** Loss, gradient with respect to the log-probabilities, and sums. */
function lossAndGradient({ logProbs, ...inputs }: LossInputs, options: LossOptions) {
  let sums: number[] = [];
  const { value, grad } = tf.valueAndGrad((x) => {
    const result = grpoLoss({ ...inputs, logProbs: x as tf.Tensor2D }, options);
    sums = [...result.sums.dataSync()];
    return result.loss;
  })(logProbs);
  return { loss: value.dataSync()[0], gradient: [...grad.dataSync()], sums };
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
  const optionsFor = (c: LossCase, rows: number) => ({ clipRange: c.clip_eps, klCoef: c.kl_weight, rows });

  it('has 36 cases', () => expect(cases).toHaveLength(36));

  it.each(named)('%s', (_, c) => {
    const [advantages] = groupAdvantages([c.returns.flat()]);
    expect(distance(advantages, c.advantages.flat())).toBeLessThan(1e-5);
    const { loss, gradient, sums } = lossAndGradient(inputsOf(c, advantages), optionsFor(c, c.returns.length));
    expect(Math.abs(loss - c.loss)).toBeLessThan(1e-5);
    expect(distance(gradient, c.grad_log_probs.flat())).toBeLessThan(1e-5);
    // Theirs is the mean over all positions, masked ones counted as zeros; sums[1] is the sum over the masked tokens.
    expect(Math.abs(sums[1] / gradient.length - c.kl)).toBeLessThan(1e-5);
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
      const options = { clipRange: run.clip_eps, klCoef: run.kl_weight, rows: rows.length };

      const start = await loadCheckpoint(checkpoint);
      const reference = { config: start.config, params: { ...start.params } };
      for (const [name, values] of await read(`${oracle}.ref_model.safetensors`)) {
        reference.params[name] = tf.tensor(values, start.params[name].shape);
      }
      const refLogProbs = scoreCompletions(reference, rows, 1).logProbs.dataSync();
      expect(distance(refLogProbs, inputs.refLogProbs.dataSync())).toBeLessThan(1e-5);

      let { params } = start;
      let optimizer = createAdamW(params);
      for (const [i, step] of run.steps.entries()) {
        const { loss, gradients } = accumulateGradients({ config: start.config, params }, [
          (current) => {
            const { logProbs } = scoreCompletions(current, rows, 1);
            const expected = grid((row) => taken(row, step.log_probs[row])).dataSync();
            expect(distance(logProbs.dataSync(), expected)).toBeLessThan(2e-5);
            return grpoLoss({ ...inputs, logProbs }, options).loss;
          },
        ]);
        const clipped = clipByGlobalNorm(gradients, run.max_grad_norm);
        expect(Math.abs(loss.dataSync()[0] - step.loss)).toBeLessThan(1e-5);
        expect(Math.abs(clipped.norm.dataSync()[0] / step.grad_norm - 1)).toBeLessThan(1e-5);
        if (i === 0) {
          for (const [name, values] of await read(`${oracle}.clipped_grads_step0.safetensors`)) {
            expect(relativeError(clipped.gradients[name].dataSync(), values), name).toBeLessThan(1e-5);
          }
        }
        const adam = { learningRate: run.lr, weightDecay: run.weight_decay };
        ({ params, state: optimizer } = adamW(params, clipped.gradients, optimizer, adam));
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
    const { loss, gradient, sums } = lossAndGradient(inputs, { ...PPO, rows: 3 });
    expect(loss).toBeCloseTo(-0.63333, 5);
    expect(gradient[2]).toBe(0); // ρ = 1.5 and A > 0: nothing more to gain
    expect(sums).toEqual([3, 0, 0, 1]); // ρ = 0.5 with A > 0 is not clipped
    // A wider upper range leaves the third token its gradient (DAPO's "clip higher").
    expect(lossAndGradient(inputs, { ...PPO, clipRangeHigh: 0.6, rows: 3 }).gradient[2]).toBeCloseTo(-1, 4);
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
    const { loss, gradient } = lossAndGradient(inputs, { ...PPO, klCoef: 1, rows: 1 });
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
    const { loss, gradient } = lossAndGradient(inputs, { ...PPO, rows: 2 });
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
        { clipRange: 0.2, klCoef: 0.5, rows: 2 },
      );
    const real = of(0);
    const other = of(-3);
    expect(other.loss).toBe(real.loss);
    expect(distance(other.gradient, real.gradient)).toBe(0);
    expect(other.sums).toEqual(real.sums);
    expect(real.sums[0]).toBe(3);
    expect(real.sums[1]).toBeCloseTo(Math.exp(-0.5) + 0.5 - 1, 6); // of the only token off the reference
  });
});

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
    expect(reward(text, answer)).toBe(expected);
  });
});

describe('sameAnswer', () => {
  it.each([
    ['4', '4.0', true],
    ['4.0', '4', true],
    [' 4 ', '4', true],
    ['-4', '4', false],
    ['+4', '4', true],
    ['007', '7', true],
    ['1,000', '1000', true],
    ['1000', '1,000', true],
    ['1,234,567', '1234567', true],
    ['1,5', '15', false],
    ['0.1', '0.10000000001', true],
    ['0.1', '0.101', false],
    ['4', '5', false],
    ['', '0', false],
    [' ', '0', false],
    ['NaN', '4', false],
    ['NaN', 'NaN', true],
    ['Infinity', '4', false],
    ['9'.repeat(400), '4', false],
    ['123456', '123457', false],
    ['Paris', 'Paris', true],
    [' Paris\n', 'Paris', true],
    ['Rome', 'Paris', false],
    ['4', 'four', false],
    ['', 'Paris', false],
  ])('%j and %j: %s', (given, expected, same) => {
    expect(sameAnswer(given, expected)).toBe(same);
  });

  it.each([
    ['10000000001', '10000000002', false],
    ['Infinity', 'Infinity', true],
    ['4', 'Infinity', false],
    ['4', '1e999', false],
    ['9007199254740993', '9007199254740992', false],
  ])('of huge numbers %j and %j: %s', (given, expected, same) => {
    expect(sameAnswer(given, expected)).toBe(same);
  });
});

describe('rollout', () => {
  it('groups by position, even when two prompts of a step are equal', async () => {
    const rollouts = await sample(optionsOf(...SMALL, '--max-new-tokens', '24'), 1, new Array(6).fill(PROBLEMS[0]));
    const groups = Array.from({ length: 6 }, (_, p) => rollouts.slice(4 * p, 4 * p + 4));
    const rewards = groups.map((group) => group.map((row) => row.reward));
    expect(new Set(rewards.map((group) => [...group].sort().join())).size).toBeGreaterThan(1); // else this shows nothing
    expect(groups.map((group) => group.map((row) => row.advantage))).toEqual(groupAdvantages(rewards));
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
    const { logProbs } = tf.tidy(() => scoreCompletions(model, rollouts, options.temperature));
    const ratios = rollouts.flatMap(({ oldLogProbs }, row) => {
      const now = logProbs.arraySync()[row];
      return oldLogProbs.map((old, t) => Math.exp(now[t] - old));
    });
    expect(distance(ratios, new Array(ratios.length).fill(1))).toBeLessThan(1e-5);
  });

  it.each([
    ['', TOKEN_IDS.eos],
    [' that is the padding token too', TOKEN_IDS.pad],
  ])('ends with an EOS%s, which is trained on, and nothing after it', async (_, eos) => {
    const ending = { ...model, config: { ...model.config, eosTokenIds: [eos] } };
    const options = optionsOf(...SMALL, '--max-new-tokens', '40');
    const rollouts = await rollout(ending, tokenizer, PROBLEMS, { ...options, step: 1 });
    expect(new Set(rollouts.map((row) => row.finishReason))).toEqual(new Set(['stop', 'length']));
    for (const { completion, oldLogProbs, finishReason } of rollouts) {
      expect(completion.indexOf(eos)).toBe(finishReason === 'stop' ? completion.length - 1 : -1);
      expect(oldLogProbs).toHaveLength(completion.length);
    }
    const state = await newState();
    const { sums } = await updateOnce(state, rollouts, options);
    expect(sums[0]).toBe(rollouts.reduce((sum, { completion }) => sum + completion.length, 0));
    tf.dispose([state.model.params, state.optimizer.m, state.optimizer.v]);
  });

  it('is summed up group by group', async () => {
    const rollouts = (await sample(optionsOf(...SMALL))).map((row, i) => ({ ...row, reward: [1, 0, 0, 0][i] ?? 0.1 }));
    const metrics = rolloutMetrics(rollouts, optionsOf(...SMALL));
    expect(metrics.reward).toBeCloseTo(1.4 / 8, 12);
    expect(metrics.reward_std).toBeCloseTo(0.25, 12); // 0.5 and 0
    expect(metrics.frac_reward_zero_std).toBe(0.5);
    expect(metrics['rewards/accuracy/mean']).toBe(1 / 8);
  });
});

describe('update', () => {
  it('has at μ = 1 a loss of about 0, and a gradient that is not', async () => {
    const options = optionsOf(...SMALL, '--temperature', '0.7');
    const rollouts = (await sample(options)).map((row, i) => ({ ...row, advantage: i % 2 === 0 ? 1 : -1 }));
    const metrics = await update(await newState(), rollouts, { ...options, step: 1 });
    expect(Math.abs(metrics.loss)).toBeLessThan(1e-6);
    expect(metrics.grad_norm).toBeGreaterThan(0.1);
    expect(metrics).toMatchObject({ 'clip_ratio/low_mean': 0, 'clip_ratio/high_mean': 0, skipped_updates: 0 });
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
    const expected = await update(a, rollouts, { ...whole, step: 1 });
    const metrics = await update(b, rollouts, { ...optionsOf(...SMALL, '--kl-coef', '0.1', ...flags), step: 1 });
    for (const name of ['loss', 'grad_norm', 'kl', 'entropy']) expect(metrics[name]).toBeCloseTo(expected[name], 5);
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
    await update(state, await offPolicy(options), { ...options, step: 1 });
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
    await update(await newState(), rollouts, { ...options, step: 1 });
    const sorted = (order: number[]) => [...order].sort();
    expect([sorted(seen.slice(0, 8)), sorted(seen.slice(8))]).toEqual([
      sorted([...rollouts.keys()]),
      sorted([...rollouts.keys()]),
    ]);
    expect(seen.slice(0, 8)).not.toEqual(seen.slice(8)); // shuffled anew
  });

  it('needs no reference at β = 0, and reports no KL', async () => {
    const options = optionsOf(...SMALL);
    const rollouts = await sample(options);
    expect(rollouts.every(({ refLogProbs }) => refLogProbs === undefined)).toBe(true);
    expect(await update(await newState(), rollouts, { ...options, step: 1 })).not.toHaveProperty('kl');
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
    const { kl } = await update(await newState(), rollouts, { ...options, step: 1 });
    expect(kl).toBeCloseTo(k3.reduce((sum, x) => sum + x) / k3.length, 5);
  });

  it('follows the gradient that finite differences give, through the whole model', async () => {
    const options = { ...optionsOf(...SMALL, '--kl-coef', '0.1', '--temperature', '0.7'), learningRate: 0 };
    const rollouts = await offPolicy(options);
    const state = await newState();
    await updateOnce(state, rollouts, options);
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
        return (await updateOnce(moved, rollouts, options)).loss;
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
      const rollouts = await rollout(state.model, tokenizer, PROBLEMS, { ...options, step });
      const rows = rollouts.map((row) => ({
        ...row,
        advantage: step === 3 ? Number.NaN : 1,
        refLogProbs: row.oldLogProbs,
      }));
      await update(state, rows, { ...options, step });
      live.push(tf.memory().numTensors);
    }
    expect(live).toEqual(new Array(4).fill(live[0]));
  });

  it('needs no more memory after 200 steps than after 50', async () => {
    const options = optionsOf(...SMALL, '--max-steps', '200');
    const state = await newState();
    const used: (number | undefined)[][] = [];
    for (let step = 1; step <= 200; step++) {
      const rollouts = await rollout(state.model, tokenizer, PROBLEMS, { ...options, step });
      await update(state, rollouts, { ...options, step });
      if (step % 50 === 0) await evaluate(state.model, tokenizer, PROBLEMS, { ...options, samples: 2 });
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
    const once = (rows: Rollout[]) => update(state, rows, { ...options, step: 1 });
    for (let i = 1; i <= 9; i++) {
      expect(await once(bad)).toMatchObject({ skipped_updates: i });
      expect(state.counters.skippedInARow).toBe(i);
    }
    expect(state.model.params).toBe(before);
    expect(state.optimizer.step).toBe(0);
    expect(await once(good)).toMatchObject({ skipped_updates: 9 });
    expect(state.counters.skippedInARow).toBe(0); // the count starts again
    for (let i = 1; i <= 9; i++) await once(bad);
    await expect(once(bad)).rejects.toThrow(UserError);
  });
});
