import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it, vi } from 'vitest';
import { initBackend } from '../lib/backend/index.ts';
import { loadPretrained } from '../lib/checkpoint/pretrained.ts';
import { openSafetensors } from '../lib/checkpoint/safetensors.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { createCalculator } from '../lib/environments/calculator.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { readMetrics } from '../lib/run/metrics.ts';
import { BACKEND } from '../testing/processes.ts';
import { at, run } from '../testing/script.ts';
import {
  type Environment,
  type GRPOConfig,
  GRPOTrainer,
  type LossType,
  type RewardInputs,
  type Row,
  type Tool,
  textOf,
} from './index.ts';

vi.mock('../lib/run/interrupt.ts', () => ({
  onInterrupt: () => ({ requested: () => false, dispose: () => {} }), // signals of this process are those of the tests
  sayOnInterrupt: () => () => {},
}));
vi.spyOn(console, 'log').mockImplementation(() => {});
vi.spyOn(process.stdout, 'write').mockImplementation(() => true);

const temp = mkdtempSync(join(tmpdir(), 'trainer-'));
afterAll(() => rmSync(temp, { recursive: true }));

const SIZE = { batchSize: 4, numGenerations: 4, maxSteps: 3, maxCompletionLength: 24, learningRate: 1e-3 };
const ARGS: GRPOConfig = { ...SIZE, backend: BACKEND, saveSteps: 0, evalSteps: 0 };
/** The sums of experiment_base, as it asks them. The bundled model's template leaves out the system prompt. */
const SUMS: Row[] = loadProblems('tasks/sums/train.jsonl').map(({ question, answer }) => ({
  prompt: [{ role: 'user', content: question }],
  answer,
}));
/** The reward of experiment_base, as a user would write it. */
function correct({ completions, answer }: RewardInputs): number[] {
  return completions.map((completion, i) => {
    const given = /<answer>(.*?)<\/answer>/.exec(textOf(completion))?.[1];
    return given === undefined ? 0 : given === answer[i] ? 1 : 0.1;
  });
}

async function weightsOf(folder: string): Promise<Record<string, readonly number[]>> {
  const file = await openSafetensors(join(folder, 'model.safetensors'));
  const names = [...file.tensors.keys()];
  const values = await Promise.all(names.map(async (name) => [name, [...(await file.read(name))]] as const));
  await file.close();
  return Object.fromEntries(values);
}

describe('is the experiment of its loss type, to the last bit', () => {
  const EXPERIMENTS: Record<LossType, string> = {
    ...{ grpo: 'base', dr_grpo: 'drgrpo', rloo: 'rloo', dapo: 'dapo', gspo: 'gspo', cispo: 'cispo' },
  };
  it.each(Object.entries(EXPERIMENTS) as [LossType, string][])('%s: experiment_%s', async (lossType, name) => {
    const [theirs, ours] = [at(`script ${name}`), join(temp, lossType)];
    const flags =
      '--batch-size 4 --num-generations 4 --max-steps 3 --max-new-tokens 24 --learning-rate 1e-3 --eval-size 0';
    const script = run(
      [...flags.split(' '), '--save-steps', '0', '--kl-coef', '0.01', '--backend', BACKEND, '--output-dir', theirs],
      { script: `experiment_${name}/train.ts` },
    );
    const args = { ...ARGS, lossType, beta: 0.01, outputDir: ours };
    const trainer = new GRPOTrainer({ model: 'models/tiny', rewardFuncs: correct, args, trainDataset: SUMS });
    const { folder } = await trainer.train();
    expect(folder).toBe(ours);
    expect(await script).toMatchObject({ code: 0, stderr: '' });
    const [a, b] = [theirs, ours].map((where) => readMetrics(join(where, 'metrics.jsonl')));
    expect([a.length, b.length]).toEqual([3, 3]);
    const isShared = (name: string) => !/second|time|rewards\/|mean_(right|wrong)_length/.test(name);
    const shared = (entry: object) => Object.fromEntries(Object.entries(entry).filter(([name]) => isShared(name)));
    expect(b.map(shared)).toEqual(a.map(shared));
    expect(b.map((entry) => entry['rewards/correct/mean'])).toEqual(
      lossType === 'dapo' ? expect.anything() : b.map(({ reward }) => reward),
    );
    expect(await weightsOf(join(ours, 'final_model'))).toEqual(await weightsOf(join(theirs, 'final_model')));
  });
});

it('a reward that throws takes no step before it along: the run goes on from there, to the same end', async () => {
  let calls = 0;
  let isBroken = true;
  const moody = (inputs: RewardInputs) => {
    if (isBroken && ++calls === 3) throw new Error('503');
    return correct(inputs);
  };
  const make = (outputDir: string, reward: (inputs: RewardInputs) => number[]) =>
    new GRPOTrainer({ model: 'models/tiny', rewardFuncs: reward, args: { ...ARGS, outputDir }, trainDataset: SUMS });
  const [broken, whole] = [join(temp, 'broken'), join(temp, 'whole')];
  await expect(make(broken, moody).train()).rejects.toThrow('the reward function moody threw: 503');
  expect(existsSync(join(broken, 'checkpoint-2'))).toBe(true);
  isBroken = false;
  await make(broken, moody).train({ resumeFromCheckpoint: true });
  await make(whole, correct).train();
  expect(await weightsOf(join(broken, 'final_model'))).toEqual(await weightsOf(join(whole, 'final_model')));
});

it('raises a reward that is easy to raise; evaluates, and saves what it has trained', async () => {
  const brief = ({ completionIds }: RewardInputs) => completionIds.map((ids) => -ids.length / 10);
  const prompts = SUMS.slice(0, 40).map(({ prompt }) => ({ prompt }));
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: brief, trainDataset: prompts, evalDataset: prompts.slice(0, 8) },
    args: { ...ARGS, maxSteps: 12, evalSamples: 2, outputDir: join(temp, 'brief') },
  });
  await expect(trainer.evaluate()).rejects.toThrow(/call that first/);
  await trainer.train();
  const rewards = readMetrics(join(temp, 'brief', 'metrics.jsonl')).map(({ reward }) => Number(reward));
  expect(rewards.at(-1)!).toBeGreaterThan(rewards[1] + 0.3); // 3 tokens fewer
  const metrics = await trainer.evaluate();
  expect(metrics['eval/reward']).toBe(readMetrics(join(temp, 'brief', 'metrics.jsonl')).at(-1)!['eval/reward']);
  await trainer.saveModel(join(temp, 'saved'));
  expect(await weightsOf(join(temp, 'saved'))).toEqual(await weightsOf(join(temp, 'brief', 'final_model')));
});

it('is told of steps, evaluations and checkpoints, and ends where a signal says so', async () => {
  const told: string[] = [];
  const end = new AbortController();
  const outputDir = join(temp, 'hooks');
  const make = () =>
    new GRPOTrainer({
      ...{ model: 'models/tiny', rewardFuncs: correct, trainDataset: SUMS, evalDataset: SUMS.slice(0, 4) },
      args: { ...ARGS, maxSteps: 4, evalSteps: 2, evalSamples: 0, outputDir, reportTo: 'tensorboard' },
      callbacks: {
        onStep: ({ step, metrics, samples }) => {
          told.push(`step ${step} ${'loss' in metrics} ${samples.length}`);
          if (step === 3) end.abort();
        },
        onEvaluate: ({ metrics }) => void told.push(`evaluated ${Object.keys(metrics)[0]}`),
        onSave: async ({ step, folder }) => void told.push(`saved ${step} ${existsSync(folder)}`),
      },
    });
  const exitCode = process.exitCode;
  await make().train({ signal: end.signal });
  expect(process.exitCode).toBe(exitCode);
  const [step, evaluated] = [(n: number) => `step ${n} true 4`, 'evaluated eval/reward'];
  expect(told).toEqual([evaluated, step(1), evaluated, step(2), step(3), 'saved 3 true']);
  told.length = 0;
  await make().train({ resumeFromCheckpoint: true });
  expect(told).toEqual([evaluated, step(4), 'saved 4 true']);
  expect(readdirSync(outputDir).some((name) => name.startsWith('events.out.tfevents'))).toBe(true);
});

it('a callback that throws ends the run, and the steps made are saved', async () => {
  const outputDir = join(temp, 'callback');
  const onStep = ({ step }: { step: number }) => {
    if (step === 2) throw new Error('disk of mine');
  };
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: correct, trainDataset: SUMS, callbacks: { onStep } },
    args: { ...ARGS, outputDir },
  });
  await expect(trainer.train()).rejects.toThrow('disk of mine');
  expect(existsSync(join(outputDir, 'checkpoint-2'))).toBe(true);
});

it.each([
  ['a callback', { onEvaluate: () => Promise.reject(new Error('mine')) }, false],
  ['a reward', {}, true],
])('an evaluation in which %s fails takes no step along', async (name, callbacks, failsInReward) => {
  const outputDir = join(temp, `evaluation, ${name}`);
  const picky = (inputs: RewardInputs) => {
    if (failsInReward && inputs.completions.length !== 16) throw new Error('mine');
    return correct(inputs);
  };
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: picky, trainDataset: SUMS, evalDataset: SUMS.slice(0, 3), callbacks },
    args: { ...ARGS, evalSteps: 2, evalOnStart: false, evalSamples: 0, outputDir },
  });
  await expect(trainer.train()).rejects.toThrow('mine');
  expect(readMetrics(join(outputDir, 'metrics.jsonl')).map(({ step }) => step)).toEqual([1, 2]);
  expect(existsSync(join(outputDir, 'checkpoint-2'))).toBe(true);
});

it('takes a model that is loaded, as it is in memory, and leaves it as it was', async () => {
  await initBackend(BACKEND as 'wasm');
  const model = await loadPretrained('models/tiny');
  const train = async (name: string, given: string | typeof model, beta = 0) => {
    const args = { ...ARGS, maxSteps: 2, beta, outputDir: join(temp, name) };
    await new GRPOTrainer({ model: given, rewardFuncs: correct, trainDataset: SUMS, args }).train();
    return readMetrics(join(temp, name, 'metrics.jsonl')).map(({ entropy, reward, loss }) => ({
      entropy,
      reward,
      loss,
    }));
  };
  const fromFile = await train('from file', 'models/tiny');
  expect(await train('loaded', model)).toEqual(fromFile);
  expect(await train('loaded, again', model, 0.1)).not.toEqual(fromFile); // it is its own reference, and still there
  const norm = model.params['model.norm.weight'];
  model.params['model.norm.weight'] = norm.mul(0.5);
  expect((await train('changed', model))[0].entropy).toBeGreaterThan(Number(fromFile[0].entropy) + 0.1);
});

it('takes another tokenizer, with another chat template', async () => {
  const folder = join(temp, 'tokenizer');
  cpSync('models/tiny', folder, { recursive: true });
  const file = join(folder, 'tokenizer_config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify({ ...config, chat_template: "{{ '<user>1+1<asst>' }}" }));
  const prompts: unknown[] = [];
  const looking = ({ completions }: RewardInputs) => completions.map((said, i) => i + textOf(said).length);
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: looking, trainDataset: SUMS, processingClass: await loadTokenizer(folder) },
    args: { ...ARGS, maxSteps: 1, outputDir: join(temp, 'processing class') },
    callbacks: { onStep: ({ samples }) => void prompts.push(...samples.map(({ completion }) => completion)) },
  });
  await trainer.train();
  // Whatever is asked, the template asks for 1+1: no sum of three terms is worked out.
  expect(prompts).toHaveLength(4);
  for (const said of prompts) expect(String(said)).not.toMatch(/\d [\d]/);
});

it('callbacks may be an object of a class', async () => {
  class Told {
    steps: number[] = [];
    onStep({ step }: { step: number }) {
      this.steps.push(step);
    }
  }
  const callbacks = new Told();
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: correct, trainDataset: SUMS, callbacks },
    args: { ...ARGS, outputDir: join(temp, 'class') },
  });
  await trainer.train();
  expect(callbacks.steps).toEqual([1, 2, 3]);
});

it('asks a reward model beside a function, keeps close to a model of one’s own, and trains an adapter', async () => {
  const outputDir = join(temp, 'judged');
  const trainer = new GRPOTrainer({
    ...{ model: 'models/tiny', rewardFuncs: ['models/tiny_reward', correct], trainDataset: SUMS },
    ...{ refModel: 'models/tiny_tool', peftConfig: { r: 4, targetModules: ['q_proj'] } },
    args: { ...ARGS, klCoef: 0.1, rewardWeights: [0.5, 2], maxSteps: 2, outputDir },
  });
  const { metrics } = await trainer.train();
  const mean = (name: string) => metrics[`rewards/${name}/mean`];
  expect(metrics.reward).toBeCloseTo(0.5 * mean('tiny_reward') + 2 * mean('correct'), 5);
  // The initial policy would have a KL of 0 to itself at the first step.
  expect(readMetrics(join(outputDir, 'metrics.jsonl'))[0].kl).toBeGreaterThan(0.1);
  expect(metrics.kl).toBeGreaterThan(0.1);
  expect(existsSync(join(outputDir, 'final_model/adapter_model.safetensors'))).toBe(true);
});

it.each([
  [{ rewardFuncs: 'models/tiny' }, /architecture \["LlamaForCausalLM"\] is not supported/],
  [{ trainDataset: [{ prompt: 'x', calls: 1 }] }, /^trainDataset\[0\]: a column cannot be called "calls"/],
  [{ refModel: 'lib/model/fixtures/none' }, /lib\/model\/fixtures\/none/],
  [{ refModel: 'models/tiny', args: { ...ARGS, beta: 0 } }, /^refModel counts for nothing where args\.beta is 0/],
  [{ args: { ...ARGS, beta: 1, klCoef: 1 } }, /^args: klCoef and beta are the same: give one of them/],
  [{ args: { ...ARGS, reportTo: 'paper' } }, /^args: .*--report-to.*must be none, or some of tensorboard/],
])('refuses %j before anything is written', async (wrong, message) => {
  const outputDir = join(temp, 'refused');
  const right = { model: 'models/tiny', rewardFuncs: correct, trainDataset: SUMS };
  const args = { beta: 0.1, ...ARGS, outputDir };
  const trainer = new GRPOTrainer({ ...right, args, ...wrong });
  await expect(trainer.train()).rejects.toThrow(message);
  expect(existsSync(outputDir)).toBe(false);
});

describe('tools', () => {
  const PRODUCTS: Row[] = loadProblems('tasks/products/train.jsonl').map(({ question, answer }) => ({
    prompt: [{ role: 'user', content: question }],
    answer,
  }));
  const called = ({ calls }: RewardInputs) => calls.map((own) => own.filter(({ ok }) => ok).length);
  const make = (outputDir: string, tools: Tool[], args: GRPOConfig = {}) =>
    new GRPOTrainer({
      ...{ model: 'models/tiny_tool', rewardFuncs: called, trainDataset: PRODUCTS, tools },
      args: { ...ARGS, maxSteps: 8, batchSize: 8, maxCompletionLength: 80, outputDir, ...args },
    });

  it('are called, rewarded, and their answers are not trained on', async () => {
    const outputDir = join(temp, 'tools');
    await make(outputDir, [await createCalculator()]).train();
    const metrics = readMetrics(join(outputDir, 'metrics.jsonl'));
    const [first, last] = [metrics[0], metrics.at(-1)!].map((entry) => Number(entry['tools/call_frequency']));
    expect(first).toBeGreaterThan(0);
    expect(last).toBeGreaterThan(first + 0.3);
    // A tool's answer is no choice of the policy: were it trained on, its log-probs of 0 would not be the policy's.
    for (const entry of metrics) expect(entry['sampling/logp_difference_max']).toBeLessThan(1e-3);
  });

  it('of an environment share its state, which is each completion’s own', async () => {
    const calculator = await createCalculator();
    const ended: { used: number; expected: string }[] = [];
    const make = (): Environment & { used: number; expected: string } => {
      const own = {
        ...{ used: 0, expected: '' },
        reset: ({ answer }: Row) => {
          own.expected = String(answer);
        },
        tools: [
          {
            ...calculator,
            call: (...args: Parameters<Tool['call']>) => {
              own.used++;
              return calculator.call(...args);
            },
          },
        ],
      };
      return own;
    };
    const used = ({ environments, calls, answer }: RewardInputs) =>
      (environments as ReturnType<typeof make>[]).map((own, i) => {
        ended.push(own);
        expect([own.used, own.expected]).toEqual([calls[i].length, answer[i]]);
        return own.used;
      });
    const trainer = new GRPOTrainer({
      ...{ model: 'models/tiny_tool', rewardFuncs: used, trainDataset: PRODUCTS, environment: make },
      args: { ...ARGS, maxSteps: 2, maxCompletionLength: 80, outputDir: join(temp, 'environment') },
    });
    const { metrics } = await trainer.train();
    expect(metrics['rewards/used/mean']).toBe(metrics['tools/call_frequency']);
    expect([ended.length, new Set(ended).size]).toEqual([32, 32]);
    expect(new Set(ended.map(({ used }) => used)).size).toBeGreaterThan(1);
    const both = { tools: [calculator], environment: make };
    const args = { model: 'models/tiny_tool', rewardFuncs: used, trainDataset: PRODUCTS };
    expect(() => new GRPOTrainer({ ...args, ...both })).toThrow(/^give either tools or an environment/);
    const late = (async () => make()) as unknown as typeof make;
    expect(() => new GRPOTrainer({ ...args, environment: late })).toThrow(/^environment\(\) must return/);
  });

  it('are those that can be called, and of grpo alone', async () => {
    const nameless = { name: 'two words', description: '', call: async () => ({ ok: true, text: '' }) };
    await expect(make(join(temp, 'nameless'), [nameless]).train()).rejects.toThrow(/^a tool needs a name of its own/);
    const calculator = [await createCalculator()];
    const refused = make(join(temp, 'refused cispo'), calculator, { lossType: 'cispo' }).train();
    await expect(refused).rejects.toThrow(/^lossType cispo has no conversations with tools/);
    expect(existsSync(join(temp, 'nameless')) || existsSync(join(temp, 'refused cispo'))).toBe(false);
  });
});
