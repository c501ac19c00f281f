/** What a run notices of itself: each sign provoked in a run, as a user would meet it. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { soloCommunicator } from '../lib/distributed/communicator.ts';
import { type LogEntry, readEntries } from '../lib/run/metrics.ts';
import { createRun } from '../lib/run/run.ts';
import { openRun } from '../lib/run/run_folder.ts';
import type { TrainingState } from '../lib/training/state.ts';
import { model, newState, optionsOf, PROBLEMS, SMALL, sample } from '../testing/policy.ts';
import { BACKEND } from '../testing/processes.ts';
import { at, run } from '../testing/script.ts';
import { type Rollout, rolloutMetrics, toExperience, update } from './train.ts';

vi.mock('../lib/run/interrupt.ts', () => ({
  onInterrupt: () => ({ requested: () => false, dispose: () => {} }), // signals of this process are those of the tests
  sayOnInterrupt: () => () => {},
}));

/** Trains the bundled model. @returns what it has noticed, as its folder keeps it, by rule; all of it was said */
async function noticed(name: string, flags: string, model = 'models/tiny'): Promise<Record<string, string[]>> {
  const few = `--backend ${BACKEND} --eval-size 0 --save-steps 0 --num-generations 8`;
  const size = flags.includes('--batch-size') ? [] : ['--batch-size', '4'];
  const { code, stdout, stderr } = await run([
    ...['--model-name', model, '--output-dir', at(name), ...size],
    ...[...few.split(' '), ...flags.split(' ')],
  ]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const notices = noticesIn(at(name));
  for (const { text } of notices) expect(stdout.split(text)).toHaveLength(2);
  return Object.fromEntries(
    notices.map(({ rule }) => [rule, notices.filter((other) => other.rule === rule).map(({ text }) => text)]),
  );
}

const noticesIn = (folder: string) =>
  readEntries(join(folder, 'notices.jsonl')) as (LogEntry & { rule: string; text: string })[];

/** A copy of the bundled model, with one place of some files replaced. */
function changedModel(name: string, changes: Record<string, [from: RegExp, to: string]>): string {
  cpSync('models/tiny', at(name), { recursive: true });
  for (const [file, [from, to]] of Object.entries(changes)) {
    const text = readFileSync(join('models/tiny', file), 'utf8');
    expect(text).toMatch(from);
    writeFileSync(at(name, file), text.replace(from, to));
  }
  return at(name);
}

const write = (name: string, problems: object[]) => {
  writeFileSync(at(name), problems.map((problem) => `${JSON.stringify(problem)}\n`).join(''));
  return at(name);
};
/** The same problem again and again, to which the bundled model never gives this answer, even with other digits. */
const unsolved = (n: number) => Array.from({ length: n }, (_, i) => ({ question: `${11 + i}+22`, answer: 1000 }));

describe.concurrent('a run notices that', () => {
  it('no completion ends: too little room', async () => {
    const { 'no-end': found, ...others } = await noticed('short', '--max-new-tokens 4 --max-steps 6');
    expect(found[0]).toMatch(/^since the first step \d %.* after 4 tokens: raise --max-new-tokens/);
    expect(others).toEqual({});
  });

  it('no completion ends: a wrong end token', async () => {
    const model = changedModel('endless model', {
      'generation_config.json': [/"eos_token_id": 1/, '"eos_token_id": 3'],
      'config.json': [/"eos_token_id": 1/, '"eos_token_id": 3'],
      'tokenizer_config.json': [/"eos_token": "<eos>"/, '"eos_token": "<user>"'],
    });
    const { 'no-end': found } = await noticed('endless', '--max-steps 5', model);
    expect(found[0]).toMatch(/ends its texts in another way than by token 3, see eos_token_id/);
  });

  it('most completions are cut off; no weight moves', async () => {
    const found = await noticed('tight', '--max-new-tokens 19 --learning-rate 0 --max-steps 6');
    expect(found).toEqual({
      'cut-off': [
        expect.stringMatching(/% of the completions of the last 5 logged steps were cut off after 19 tokens/),
      ],
      'nothing-moves': [expect.stringMatching(/the learning rate was 0 at most/)],
    });
  });

  it('the learning rate is too high: reward and KL say so', async () => {
    const found = await noticed(
      'wild',
      '--learning-rate 0.003 --kl-coef 0.0001 --max-steps 20 --max-new-tokens 24 --batch-size 16',
    );
    expect(Object.keys(found)).toEqual(expect.arrayContaining(['learning-rate', 'kl']));
    expect(found['learning-rate'][0]).toMatch(/lower --learning-rate \(now 0\.00\d+\)/);
  });

  it('the reward is constant, all prompts are the same, and there is no chat template', async () => {
    const model = changedModel('plain model', { 'tokenizer_config.json': [/,\s*"chat_template": ".*"/, ''] });
    const data = write(
      'unsolved.jsonl',
      unsolved(8).map((problem) => ({ ...problem, asked: 'no', question: '1+1' })),
    );
    const found = await noticed('constant', `--format-reward 0 --max-steps 8 --dataset ${data}`, model);
    expect(found).toEqual({
      start: [
        expect.stringMatching(/^no chat template: /),
        expect.stringMatching(/^all 8 prompts are the same: .*--question-column/),
      ],
      'constant-reward': [expect.stringMatching(/^in each of the first 7 logged steps .* and their mean 0, /)],
    });
  });

  it('groups are flat', async () => {
    const data = write('hard.jsonl', [
      ...unsolved(22),
      { question: '62+26', answer: 88 },
      { question: '33+56', answer: 89 },
    ]);
    const found = await noticed('hard', `--format-reward 0 --max-steps 11 --batch-size 10 --dataset ${data}`);
    expect(Object.keys(found)).toEqual(['flat-groups']);
    expect(found['flat-groups'][0]).toMatch(/\d % .* some problems are always solved, others never; leave those out$/);
  });

  it('nothing is wrong: it is silent', async () => {
    expect(await noticed('fine', '--max-steps 12')).toEqual({});
  });
});

describe('a run notices, where something is done to it in each step, that', () => {
  /** Steps of a random policy. @returns its notices */
  async function take(
    name: string,
    meddle: (step: number, state: TrainingState) => { rollouts?: (sampled: Rollout[]) => Rollout[] },
    lasts: number[],
  ) {
    const options = optionsOf(
      ...SMALL,
      '--max-steps',
      String(lasts.at(-1)),
      '--save-steps',
      '0',
      '--learning-rate',
      '0',
    );
    const place = { experiment: 'experiment_base', outputDir: at(name) };
    for (const [i, maxSteps] of lasts.entries()) {
      const folder = openRun({ ...place, resume: i > 0 ? at(name) : undefined, options });
      const state = await newState();
      const context = {
        ...{ shown: {}, heldOut: 0, source: { folder: 'models/tiny', dtypes: {} } },
        ...{ tokenizer: { decode: String }, communicator: soloCommunicator() },
      };
      for await (const step of createRun(folder, state, context, { ...options, maxSteps }).steps()) {
        const { rollouts: changed = (sampled: Rollout[]) => sampled } = meddle(step.number, state);
        const rollouts = changed(await sample(options, step.number, PROBLEMS, state.model));
        const experience = await toExperience(rollouts, undefined, options);
        const updated = await update(state, experience, step.number, options);
        step.log({ ...rolloutMetrics(rollouts, options), ...updated, learning_rate: 1e-4 });
      }
    }
    return noticesIn(at(name));
  }
  /** Multiplies the logits of a policy. */
  const scale = ({ model: { params } }: TrainingState, factor: number) => {
    params['lm_head.weight'] = model.params['lm_head.weight'].mul(factor);
    return {};
  };

  it('what is sampled is not what is trained: at once, and not again after a resume', async () => {
    // As a sampler with an error would record them.
    const rollouts = (sampled: Rollout[]) =>
      sampled.map((row, i) => (i === 3 ? { ...row, oldLogProbs: row.oldLogProbs.map((x) => x + 0.01) } : row));
    expect((await take('drifted', () => ({ rollouts }), [2, 4])).filter(({ rule }) => rule === 'log-probs')).toEqual([
      { step: 1, rule: 'log-probs', text: expect.stringMatching(/differ by up to 0\.01 from those recorded/) },
    ]);
  });

  it('the entropy is gone', async () => {
    const found = await take('certain', (step, state) => scale(state, step <= 3 ? 1 : 3000), [14]);
    expect(found.find(({ rule }) => rule === 'entropy-gone')?.text).toMatch(/^the policy tries nothing else .* 0 % of/);
  });

  it('the entropy explodes', async () => {
    const found = await take('apart', (step, state) => scale(state, step <= 3 ? 10 : 0), [9]);
    expect(found.find(({ rule }) => rule === 'entropy-exploding')?.text).toMatch(/ to [23]\.\d+ nats a token: /);
  });
});
