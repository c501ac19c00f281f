import { describe, expect, it } from 'vitest';
import type { LogEntry } from './metrics.ts';
import { flatShare, groupThatHelps, noticed, RULES } from './notices.ts';

/** A run in which nothing is wrong. */
const FINE = {
  ...{ reward: 0.5, reward_std: 0.4, frac_reward_zero_std: 0.3, 'rewards/accuracy/mean': 0.5, entropy: 0.2, kl: 0.01 },
  ...{ grad_norm: 0.5, learning_rate: 1e-4, 'completions/clipped_ratio': 0.1, 'sampling/logp_difference_max': 1e-5 },
};
type Metrics = Partial<Record<keyof typeof FINE | 'completions/parsed_ratio', number | null>>;

/** The names of the rules that have held by the end of a run, each with its step and its sentence. */
function run(steps: Metrics[], { evaluated, since = 0 }: { evaluated?: number; since?: number } = {}) {
  const entries: LogEntry[] = evaluated === undefined ? [] : [{ step: 0, 'eval/sampled_accuracy': evaluated }];
  const said = new Map<string, { step: number; text: string }>();
  for (const [i, metrics] of steps.entries()) {
    entries.push({ step: i + 1, ...FINE, ...metrics });
    const seen = {
      entries,
      since,
      batchSize: 32,
      learningRate: 1e-4,
      numGenerations: 8,
      maxNewTokens: 32,
      eosTokenIds: [2, 7],
    };
    for (const { rule, text } of noticed(seen, new Set(said.keys()))) said.set(rule, { step: i + 1, text });
  }
  return Object.fromEntries(said);
}
/** So many steps with the same metrics. */
const times = (n: number, metrics: Metrics = {}) => new Array<Metrics>(n).fill(metrics);

it('a run in which nothing is wrong is silent, and so is one whose reward rises to the top', () => {
  expect(run(times(40), { evaluated: 0.4 })).toEqual({});
  const rising = Array.from({ length: 60 }, (_, i) => {
    const right = 0.3 + 0.65 * (i / 60);
    return { reward: right, 'rewards/accuracy/mean': right, frac_reward_zero_std: flatShare(right, 8), entropy: 0.02 };
  });
  expect(run(rising, { evaluated: 0.3 })).toEqual({}); // certain from the start, and learning all the same
});

it('has a sentence with numbers and a remedy for each sign, and says it once', () => {
  const flat: Metrics = { frac_reward_zero_std: 1, reward_std: 0, grad_norm: 0 };
  const signs: [rule: string, step: number, text: RegExp, steps: Metrics[]][] = [
    [
      'no-end',
      5,
      /0 % .*after 32 tokens.*--max-new-tokens.*token 2 or 7/,
      times(9, { 'completions/clipped_ratio': 1 }),
    ],
    [
      'cut-off',
      8,
      /^63 % .* last 5 logged steps .* 32 tokens, of the first 5 10 %: .*--learning-rate.* --max-new-tokens$/,
      [...times(5), ...times(9, { 'completions/clipped_ratio': 0.98 })],
    ],
    [
      'unread',
      5,
      /^of the completions of the last 5 logged steps 2 % could be read/,
      times(9, { 'completions/parsed_ratio': 0.02 }),
    ],
    ['constant-reward', 5, /first 5 logged steps .* and their mean 0.1, /, times(9, { ...flat, reward: 0.1 })],
    [
      'learning-rate',
      17,
      /fell from 0.5 .* to 0.255 .* rose from 0.5 to 2: lower --learning-rate \(now 0.0001\)/,
      [...times(10), ...times(9, { reward: 0.15, grad_norm: 2 })],
    ],
    [
      'entropy-gone',
      15,
      /from 0.2 to 0.02 nats a token, and 10 % /,
      [...times(5), ...times(12, { entropy: 0.02, 'rewards/accuracy/mean': 0.1 })],
    ],
    ['entropy-exploding', 9, /from 0.2 to 1.24 nats/, [...times(5), ...times(9, { entropy: 1.5 })]],
    ['kl', 5, /3 nats a token \(below 0.1 is usual\): lower --learning-rate/, times(9, { kl: 3 })],
    ['log-probs', 1, /up to 0.2 .*--kernels off/, times(9, { 'sampling/logp_difference_max': 0.2 })],
    ['nothing-moves', 5, /learning rate was 1e-10 at most/, times(9, { learning_rate: 1e-10 })],
  ];
  for (const [rule, step, text, steps] of signs) {
    expect(run(steps)).toEqual({ [rule]: { step, text: expect.stringMatching(text) } });
  }
  const tested = [...signs.map(([rule]) => rule), 'flat-groups'];
  expect(RULES.map(([rule]) => rule).sort()).toEqual(tested.sort());
});

describe('flat groups', () => {
  /** Rewards that are not always the same, but equal within a group. */
  const flatRun = (right: number) =>
    Array.from({ length: 12 }, (_, i) => ({
      ...{ frac_reward_zero_std: 0.95, 'rewards/accuracy/mean': right, reward: right + (i % 2) / 100 },
    }));
  const said = (right: number, evaluated?: number) => run(flatRun(right), { evaluated })['flat-groups'];

  it('are too hard, or too easy: with the share that is to be expected, and a G that would help', () => {
    expect(said(0.02)).toEqual({
      step: 10,
      text: 'in 95 % of the groups of the last 10 logged steps all rewards are equal, and teach nothing: the problems are too hard, 2 % of the answers are right, which lets expect 85 % flat groups of 8: raise --num-generations to 35 or more, or take easier problems',
    });
    expect(said(0.97).text).toContain(
      'too easy, 97 % of the answers are right, which lets expect 78 % flat groups of 8',
    );
    expect(said(0.97).text).toContain('raise --num-generations to 23 or more, or take harder problems');
    expect(said(0).text).toMatch(/expect 100 % flat groups of 8: take easier problems$/);
  });

  it('are explained by the first evaluation, unless much has changed since', () => {
    expect(said(0.02, 0.05).text).toContain('5 % of the answers are right');
    expect(said(0.99, 0.7).text).toContain('99 % of the answers are right');
  });

  it('are of problems some of which are always solved, others never; or of rewards that say nothing of what is right', () => {
    expect(said(0.5).text).toMatch(
      /50 % .* expect 0.8 %: some problems are always solved, others never; leave those out$/,
    );
    const blind = flatRun(0).map(({ 'rewards/accuracy/mean': _, ...rest }) => ({
      ...rest,
      'rewards/accuracy/mean': null,
    }));
    expect(run(blind)['flat-groups'].text).toMatch(/the reward hardly tells the answers to a prompt apart: /);
  });

  it('are those of problems that are solved by now', () => {
    const learnt = [...times(8, { 'rewards/accuracy/mean': 0.4 }), ...flatRun(0.99)];
    expect(run(learnt, { evaluated: 0.4 })['flat-groups'].text).toMatch(
      /99 % .* right by now, the problems are solved$/,
    );
  });

  it('p^G + (1 − p)^G, and the G from which on it is at most a half', () => {
    expect(flatShare(0.5, 2)).toBe(0.5);
    expect(flatShare(0.9, 8)).toBeCloseTo(0.43047, 5);
    expect([0.5, 0.9, 0.02, 0.001, 0].map(groupThatHelps)).toEqual([2, 7, 35, undefined, undefined]);
    expect(flatShare(0.02, 34)).toBeGreaterThan(0.5);
  });
});

it('a metric that a step does not have, or that was not finite, says nothing', () => {
  const nothing = Object.fromEntries(Object.keys(FINE).map((name) => [name, null])) as Metrics;
  expect(run(times(20, nothing))).toEqual({});
});

it('of few groups, or few completions, it waits for more: they may be alike by chance', () => {
  const flat = { frac_reward_zero_std: 1, reward: 0, reward_std: 0, grad_norm: 0, 'rewards/accuracy/mean': 0 };
  const entries = Array.from({ length: 60 }, (_, i) => ({ step: i + 1, ...FINE, ...flat }));
  const seen = { since: 0, batchSize: 1, numGenerations: 8, maxNewTokens: 32, learningRate: 1e-4, eosTokenIds: [2] };
  expect(noticed({ ...seen, entries: entries.slice(0, 24) }, new Set())).toEqual([]);
  expect(noticed({ ...seen, entries: entries.slice(0, 25) }, new Set())[0].rule).toBe('constant-reward');
});

it('after a resume, the first update of this process is looked at', () => {
  const differs = { 'sampling/logp_difference_max': 0.2 };
  expect(run([...times(3), ...times(1, differs)], { since: 3 })).toHaveProperty('log-probs');
  expect(run([...times(3), ...times(1, differs)])).not.toHaveProperty('log-probs');
});

it('looks at long runs without running out of anything', () => {
  const steps = Array.from({ length: 150_000 }, (_, i) => ({ step: i + 1, ...FINE, reward: i < 9 ? 1 : 0 }));
  const seen = { since: 0, batchSize: 32, numGenerations: 8, maxNewTokens: 32, learningRate: 1e-4, eosTokenIds: [2] };
  expect(() => noticed({ ...seen, entries: steps }, new Set())).not.toThrow();
});
