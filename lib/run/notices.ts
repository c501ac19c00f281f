/** What a run notices of itself: signs that nothing is learnt, each with its numbers and what to do about it. */
import { mean, sampleStd } from '../statistics.ts';
import type { LogEntry } from './metrics.ts';

/** What the rules look at. */
export type Seen = {
  /** what was logged so far: first the evaluation before the first step, if there was one, then a line a logged step */
  entries: LogEntry[];
  /** the step that this process went on from: 0, unless it resumes a run */
  since: number;
  batchSize: number;
  numGenerations: number;
  learningRate: number;
  maxNewTokens: number;
  /** the tokens that end a completion */
  eosTokenIds: number[];
};

/** A rule's name, and its sentence if it holds. A mean over steps that do not have the metric is NaN, and no rule holds. */
type Rule = [name: string, says: (view: View) => string | undefined];

/** Logged steps that a rule looks at, unless it says otherwise: one step is chance. */
const FEW = 5;
const MANY = 10;
/** Groups, and completions, of which a rule says that all, or nearly all, are alike: of fewer that may be chance. */
const [GROUPS, COMPLETIONS] = [100, 200];
const CUT = 'completions/clipped_ratio';

type View = ReturnType<typeof viewOf>;

/** A metric of a step; NaN if it does not have it, which metrics.jsonl says as null. */
const metricOf = (entry: LogEntry | undefined, metric: string): number => Number(entry?.[metric] ?? Number.NaN);

function viewOf({ entries, since, ...settings }: Seen) {
  const steps = entries.filter(({ step }) => step > 0);
  const { batchSize: P, numGenerations: G } = settings;
  const meanOf = (some: LogEntry[], metric: string) => mean(some.map((entry) => metricOf(entry, metric)));
  return {
    ...settings,
    steps,
    newest: steps.at(-1),
    /** the first step of this process */
    own: steps.find(({ step }) => step > since),
    /** logged steps that have enough groups, and enough completions, to speak of all of them */
    ofGroups: Math.max(MANY, Math.ceil(GROUPS / P)),
    ofCompletions: Math.max(FEW, Math.ceil(COMPLETIONS / (P * G))),
    /** the mean of a metric over the first, or the last, steps; NaN before there are so many */
    first: (metric: string, n = FEW) => (steps.length < n ? Number.NaN : meanOf(steps.slice(0, n), metric)),
    last: (metric: string, n = FEW) => (steps.length < n ? Number.NaN : meanOf(steps.slice(-n), metric)),
    /** whether a metric has had this value in every step */
    always: (metric: string, value: unknown) => value !== undefined && steps.every((entry) => entry[metric] === value),
    /** the share of right samples before the first step, or else in training */
    solved: metricOf(
      entries.find((entry) => 'eval/sampled_accuracy' in entry),
      'eval/sampled_accuracy',
    ),
  };
}

const percent = (share: number) => `${(100 * share).toFixed(share > 0 && share < 0.01 ? 1 : 0)} %`;
const brief = (x: number) => String(Number(x.toPrecision(3)));

/** The share of groups of G whose answers are all right or all wrong, if each is right with probability p. */
export const flatShare = (p: number, G: number): number => p ** G + (1 - p) ** G;

/** The smallest G of which no more than half of the groups are flat; undefined if not even 64 will do. */
export function groupThatHelps(p: number): number | undefined {
  for (let G = 2; G <= 64; G++) if (flatShare(p, G) <= 0.5) return G;
  return undefined;
}

/** Why groups are flat, where a share p of the answers is right, and what to do about it. */
function causeOfFlat(flat: number, p: number, G: number): string {
  if (!Number.isFinite(p))
    return 'the reward hardly tells the answers to a prompt apart: take other prompts, or a finer reward';
  const expected = flatShare(p, G);
  if (flat === 1 && expected < 0.5) {
    return `${percent(p)} of the answers are right, and yet all answers to a prompt get the same: either the reward does not tell them apart, or the policy says the same each time`;
  }
  if (flat - expected > 0.25) {
    return `${percent(p)} of the answers are right, which lets expect ${percent(expected)}: some problems are always solved, others never; leave those out`;
  }
  const [kind, other] = p < 0.5 ? ['hard', 'easier'] : ['easy', 'harder'];
  const helps = groupThatHelps(p);
  const larger = helps !== undefined && helps > G ? `raise --num-generations to ${helps} or more, or ` : '';
  return `the problems are too ${kind}, ${percent(p)} of the answers are right, which lets expect ${percent(expected)} flat groups of ${G}: ${larger}take ${other} problems`;
}

/** Each is said at most once a run, when it first holds. The order is that of looking for a cause. */
export const RULES: Rule[] = [
  [
    'no-end',
    ({ first, last, maxNewTokens, eosTokenIds }) => {
      const cut = last(CUT);
      if (!(first(CUT) > 0.95 && cut > 0.95)) return undefined;
      return `since the first step ${percent(1 - cut)} of the completions have ended by themselves, the others were cut off after ${maxNewTokens} tokens: raise --max-new-tokens; or, if completions.jsonl goes on after the answer, the model ends its texts in another way than by token ${eosTokenIds.join(' or ')}, see eos_token_id in its config.json`;
    },
  ],
  [
    'cut-off',
    ({ first, last, maxNewTokens }) => {
      const [before, now] = [first(CUT), last(CUT)];
      if (!(now > 0.5) || before > 0.95) return undefined;
      const remedy = before < 0.25 ? 'if they grow for no reason, lower --learning-rate, else' : 'they need more room:';
      return `${percent(now)} of the completions of the last ${FEW} logged steps were cut off after ${maxNewTokens} tokens, of the first ${FEW} ${percent(before)}: ${remedy} raise --max-new-tokens`;
    },
  ],
  [
    'unread',
    ({ first, last, maxNewTokens }) => {
      const [before, now] = [first('completions/parsed_ratio'), last('completions/parsed_ratio')];
      if (!(before < 0.2 && now < 0.2)) return undefined;
      return `of the completions of the last ${FEW} logged steps ${percent(now)} could be read, the others get no reward for what they say: compare completions.jsonl with the form that --system-prompt asks for; a model that has not learnt to follow instructions will not find it by chance, and ${maxNewTokens} tokens (--max-new-tokens) must be enough for it`;
    },
  ],
  [
    'constant-reward',
    ({ always, steps, ofCompletions }) => {
      const reward = steps[0]?.reward;
      if (steps.length < ofCompletions || !always('frac_reward_zero_std', 1) || !always('reward', reward))
        return undefined;
      return `in each of the first ${steps.length} logged steps the rewards of a group were all equal, and their mean ${brief(Number(reward))}, so that no completion is better than another: look at completions.jsonl for what they are, and at the reward for what it wants`;
    },
  ],
  [
    'flat-groups',
    ({ always, first, last, newest, solved, numGenerations, ofGroups: n }) => {
      const flat = last('frac_reward_zero_std', n);
      if (!(flat >= 0.9) || always('reward', newest?.reward)) return undefined;
      const [before, start, now] = [solved, first('rewards/accuracy/mean'), last('rewards/accuracy/mean', n)];
      // Where the policy has come apart, it was not the problems: other rules say why.
      if (start - now > 0.1 || (now < 0.5 && before - now > 0.1)) return undefined;
      const sign = `in ${percent(flat)} of the groups of the last ${n} logged steps all rewards are equal, and teach nothing`;
      if (now > 0.9 && now - start > 0.1)
        return `${sign}: ${percent(now)} of the answers are right by now, the problems are solved`;
      // As it was before the first step; but a run that has learnt since has other problems than it began with.
      return `${sign}: ${causeOfFlat(flat, Math.abs(before - now) < 0.1 ? before : now, numGenerations)}`;
    },
  ],
  [
    'learning-rate',
    ({ first, last, steps, learningRate }) => {
      const [before, now, spread] = [first('reward'), last('reward', MANY), first('reward_std')];
      if (steps.length < FEW + MANY || !(now < before - spread / 2)) return undefined;
      // A few prompts a step are luckier at times: a fall counts if it is four times as large as chance makes it.
      const variance = (some: LogEntry[]) =>
        sampleStd(some.map((entry) => metricOf(entry, 'reward'))) ** 2 / some.length;
      const chance = Math.sqrt(variance(steps.slice(0, FEW)) + variance(steps.slice(-MANY)));
      const usual = first('grad_norm');
      // The largest mean of a few steps in a row: the norm grows while a policy comes apart, and is small once it has.
      const means = steps
        .slice(2 * FEW - 1)
        .map((_, i) => mean(steps.slice(i + FEW, i + 2 * FEW).map((entry) => metricOf(entry, 'grad_norm'))));
      const largest = means.filter(Number.isFinite).reduce((a, b) => Math.max(a, b), 0);
      if (!(now < before - 4 * chance) || !(largest > 1.25 * usual)) return undefined;
      return `the reward fell from ${brief(before)} in the first ${FEW} logged steps to ${brief(now)} in the last ${MANY}, while the gradient norm rose from ${brief(usual)} to ${brief(largest)}: lower --learning-rate (now ${brief(learningRate)}), or raise --kl-coef`;
    },
  ],
  [
    'entropy-gone',
    ({ first, last }) => {
      const [entropy, before, right] = [
        last('entropy', MANY),
        first('entropy', 3),
        last('rewards/accuracy/mean', MANY),
      ];
      // A policy that was certain from the start may learn all the same.
      if (!(entropy < 0.03 && entropy < before / 3 && right < 0.5)) return undefined;
      return `the policy tries nothing else any more, its entropy fell from ${brief(before)} to ${brief(entropy)} nats a token, and ${percent(right)} of its answers are right: go back to an earlier checkpoint, with a lower --learning-rate, or a higher --kl-coef or --temperature`;
    },
  ],
  [
    'entropy-exploding',
    ({ first, last }) => {
      const [before, now] = [first('entropy', 3), last('entropy')];
      if (!(now > 1 && now > 3 * before)) return undefined;
      return `the policy comes apart, its entropy rose from ${brief(before)} to ${brief(now)} nats a token: go back to an earlier checkpoint, with a lower --learning-rate or a higher --kl-coef`;
    },
  ],
  [
    'kl',
    ({ last }) => {
      const kl = last('kl');
      if (!(kl > 1)) return undefined;
      return `the policy is far from where it began, the KL is ${brief(kl)} nats a token (below 0.1 is usual): lower --learning-rate, or raise --kl-coef`;
    },
  ],
  [
    'log-probs',
    ({ own }) => {
      // Later ones say nothing new: rounding grows where a policy comes apart and its logits become huge.
      const difference = metricOf(own, 'sampling/logp_difference_max');
      if (!(difference > 1e-3)) return undefined;
      return `log-probs of the first update differ by up to ${brief(difference)} from those recorded while sampling, where rounding explains 0.001: what is sampled is not what is trained; try another --backend or --kernels off, and if that helps, please report it`;
    },
  ],
  [
    'nothing-moves',
    ({ steps }) => {
      const rates = steps.slice(0, FEW).map((entry) => metricOf(entry, 'learning_rate'));
      if (rates.length < FEW || !(Math.max(...rates) < 1e-9)) return undefined;
      return `hardly a weight can have moved, the learning rate was ${brief(Math.max(...rates))} at most, less than a float32 weight can change by: raise --learning-rate, or lower --warmup-steps`;
    },
  ],
];

/** The rules that hold and have not been said: their names, and a sentence each. */
export function noticed(seen: Seen, said: ReadonlySet<string>): { rule: string; text: string }[] {
  const view = viewOf(seen);
  return RULES.flatMap(([rule, says]) => {
    const text = said.has(rule) ? undefined : says(view);
    return text === undefined ? [] : [{ rule, text }];
  });
}
