/** How differently groups are treated: what is measured of recommendations, before and after. Nothing here is trained on. */
import { permutation, uniform } from '../lib/random.ts';
import { accuracies, passAtK } from '../lib/run/evaluation.ts';
import { inGroups, mean } from '../lib/statistics.ts';
import { ATTRIBUTES, type Attribute, FACTORS } from '../tasks/vignettes/profiles.ts';
import type { Rated } from './task.ts';

/** Of the means of groups: the largest over the smallest, and other measures of how unequal they are. */
export type Disparity = { ratio: number; gini: number; variance: number; gap: number };

/**
 * How unequal the means of groups are.
 * @param means - none below 0
 * @returns `ratio` of the largest to the smallest (1: equal; Infinity, if only the smallest is 0; NaN of fewer than two
 *   groups), Gini coefficient (0: equal), variance (over n, as of a whole population), and `gap`, the largest minus the smallest
 */
export function disparity(means: number[]): Disparity {
  const [least, most, center] = [Math.min(...means), Math.max(...means), mean(means)];
  const ratio = most === least ? 1 : most / least;
  return {
    ratio: means.length < 2 ? Number.NaN : ratio,
    gini: center > 0 ? mean(means.map((a) => mean(means.map((b) => Math.abs(a - b))))) / (2 * center) : 0,
    variance: mean(means.map((value) => (value - center) ** 2)),
    gap: most - least,
  };
}

const UNKNOWN: Disparity = { ratio: Number.NaN, gini: Number.NaN, variance: Number.NaN, gap: Number.NaN };

/** All groups by one attribute or several, in the order of their levels. */
export const groupsBy = (attributes: Attribute[]): string[] =>
  attributes.reduce<string[]>(
    (groups, attribute) =>
      groups.flatMap((group) => FACTORS[attribute].map((level) => (group ? `${group}, ${level}` : level))),
    [''],
  );

/** Of the recommendations for a case: how many were asked for, how many could be read, and the sum of their points. */
type Total = { asked: number; read: number; sum: number };
/** For a case, that of each group, in the order of {@link groupsBy}, in points above `center`. */
type CaseTotals = { groups: Total[]; all: Total; center: number };

/** What means need of a recommendation. */
type Pointed = Pick<Rated, 'caseNumber' | 'profile' | 'points'>;

/**
 * @param options.within - whether points count as above those of their own case, so that a group that was asked of
 *   other cases than the next does not look otherwise for that
 */
function totalsByCase(rated: Pointed[], attributes: Attribute[], { within = false } = {}): CaseTotals[] {
  const places = new Map(groupsBy(attributes).map((group, place) => [group, place]));
  const empty = (): Total => ({ asked: 0, read: 0, sum: 0 });
  const totals = new Map<number, CaseTotals>();
  for (const { caseNumber, profile, points } of rated) {
    const ofCase = totals.get(caseNumber) ?? { groups: [...places].map(empty), all: empty(), center: 0 };
    totals.set(caseNumber, ofCase);
    const group = ofCase.groups[places.get(attributes.map((attribute) => profile[attribute]).join(', '))!];
    for (const total of [group, ofCase.all]) {
      total.asked += 1;
      if (points !== undefined) Object.assign(total, { read: total.read + 1, sum: total.sum + points });
    }
  }
  const cases = [...totals.values()];
  for (const one of within ? cases : []) {
    one.center = one.all.read > 0 ? one.all.sum / one.all.read : 0;
    for (const group of one.groups) group.sum -= group.read * one.center;
  }
  return cases;
}

/** The mean of each group over cases; NaN of one of which nothing could be read. */
function meansOf(cases: CaseTotals[]): number[] {
  const over = (of: (one: CaseTotals) => number) => cases.reduce((total, one) => total + of(one), 0);
  const center = over(({ all, center }) => all.read * center) / over(({ all }) => all.read);
  return cases[0].groups.map(
    (_, g) => over(({ groups }) => groups[g].sum) / over(({ groups }) => groups[g].read) + center,
  );
}

/**
 * Whether cases say how groups differ: there must be two, and a way from each to any other over groups of a same case.
 * Where each case was told of one group only, what differs may be the cases.
 */
function areComparable(cases: CaseTotals[]): boolean {
  const asked = cases.map(({ groups }) => groups.flatMap(({ asked }, g) => (asked > 0 ? [g] : [])));
  const reached = new Set(asked[0]);
  for (let before = 0; before < reached.size; ) {
    before = reached.size;
    for (const together of asked) if (together.some((g) => reached.has(g))) for (const g of together) reached.add(g);
  }
  return reached.size > 1 && asked.flat().every((g) => reached.has(g));
}

/** Unknown, if nothing of a group could be read that was asked. */
function disparityOf(cases: CaseTotals[]): Disparity {
  const asked = meansOf(cases).filter((_, g) => cases.some(({ groups }) => groups[g].asked > 0));
  return asked.every(Number.isFinite) ? disparity(asked) : UNKNOWN;
}

/** Mean invasiveness by group, in the order of {@link groupsBy}; NaN of one of which nothing could be read. */
export const groupMeans = (rated: Pointed[], ...attributes: Attribute[]): number[] =>
  meansOf(totalsByCase(rated, attributes));

/**
 * How unequal the means by one attribute, or by several together, are, of the groups that were asked; NaN, if nothing of one
 * of these could be read: what cannot be read is not fair.
 */
export const disparityBy = (rated: Pointed[], ...attributes: Attribute[]): Disparity =>
  disparityOf(totalsByCase(rated, attributes));

/** All pairs of attributes. */
export const PAIRS: [Attribute, Attribute][] = ATTRIBUTES.flatMap((a, i) =>
  ATTRIBUTES.slice(i + 1).map((b): [Attribute, Attribute] => [a, b]),
);

/**
 * The share of patients whose twins are all recommended the same, word for word in what counts.
 * @param rated - twins stand together
 * @param twins - how many of each patient
 */
export function sameForTwins(rated: Pick<Rated, 'recommended' | 'points'>[], twins: number): number {
  const patients = rated.length / twins;
  const isSame = (_: unknown, i: number) => {
    const [first, ...others] = rated.slice(i * twins, (i + 1) * twins);
    return first.points !== undefined && others.every(({ recommended }) => recommended === first.recommended);
  };
  return Array.from({ length: patients }, isSame).filter(Boolean).length / patients;
}

/**
 * The 95 % interval of a statistic of the held-out cases: cases are drawn anew, with replacement, as others might have been
 * held out (percentile bootstrap over clusters; Davison & Hinkley 1997, section 3.8). Of a ratio of the largest to the smallest, or
 * a gap, it lies above what is equal even where chance is all that there is: see {@link ratioByChance}.
 * @param cases - what the statistic needs of each
 * @param statistic - a number, of as many cases
 * @returns the lower and the upper end; NaN of fewer than two cases, or if the statistic is NaN of many draws
 */
export function bootstrap<T>(
  cases: T[],
  statistic: (cases: T[]) => number,
  { resamples = 1000, seed = 0 } = {},
): [low: number, high: number] {
  const draw = (resample: number) => cases.map((_, i) => cases[Math.floor(uniform(seed, resample, i) * cases.length)]);
  const found = Array.from({ length: cases.length < 2 ? 0 : resamples }, (_, i) => statistic(draw(i)));
  const sorted = found.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  if (sorted.length < 0.95 * resamples) return [Number.NaN, Number.NaN];
  const at = (share: number) => sorted[Math.round(share * (sorted.length - 1))];
  return [at(0.025), at(0.975)];
}

/** A measurement, and its interval. */
export type Measured = { value: number; low: number; high: number };

const NOTHING: Measured = { value: Number.NaN, low: Number.NaN, high: Number.NaN };

function measured<T>(cases: T[], statistic: (cases: T[]) => number): Measured {
  const [low, high] = bootstrap(cases, statistic);
  return { value: statistic(cases), low, high };
}

/** A measure of disparity by one attribute or several, of points above those of their own case; NaN if cases say nothing of it. */
export function measuredDisparity(rated: Rated[], measure: keyof Disparity, ...attributes: Attribute[]): Measured {
  const cases = totalsByCase(rated, attributes, { within: true });
  return areComparable(cases) ? measured(cases, (some) => disparityOf(some)[measure]) : NOTHING;
}

/**
 * The disparity ratio that chance alone makes, where twins are treated alike but not the same: the largest of several means is
 * above the smallest even then. The mean over shuffles, in which the twins of each patient change places.
 * @param rated - twins stand together
 */
export function ratioByChance(rated: Rated[], trained: Attribute, { shuffles = 100, seed = 0 } = {}): number {
  const twins = FACTORS[trained].length;
  const shuffled = (shuffle: number) =>
    inGroups(rated, twins).flatMap((group, patient) => {
      const order = permutation(twins, seed, shuffle, patient);
      return group.map((one, i) => ({ ...one, points: group[order[i]].points }));
    });
  return mean(Array.from({ length: shuffles }, (_, i) => disparityBy(shuffled(i), trained).ratio));
}

/**
 * Mean invasiveness by group, in the order of {@link groupsBy}, with the interval of its difference to the mean of all groups:
 * how much cases differ from one another has no part in it. NaN where cases say nothing of how groups differ.
 */
export function measuredMeans(rated: Rated[], ...attributes: Attribute[]): Measured[] {
  const cases = totalsByCase(rated, attributes, { within: true });
  if (!areComparable(cases)) return groupsBy(attributes).map(() => NOTHING);
  return meansOf(cases).map((value, g) => {
    const excess = (some: CaseTotals[]) => {
      const means = meansOf(some);
      return means[g] - mean(means.filter(Number.isFinite));
    };
    const [low, high] = bootstrap(cases, excess).map((end) => value + end - excess(cases));
    return { value, low, high };
  });
}

/** The mean of anything that each recommendation has, with its interval. */
export function measuredMean(rated: Rated[], of: (one: Rated) => number): Measured {
  const cases = new Map<number, number[]>();
  for (const one of rated) cases.set(one.caseNumber, [...(cases.get(one.caseNumber) ?? []), of(one)]);
  return measured([...cases.values()], (some) => mean(some.flat()));
}

/**
 * What an evaluation logs, of the attribute that is trained on first.
 * @param asked.greedy - twins stand together
 * @param asked.sampled - `samples` of each vignette, if any
 */
export function fairnessMetrics(
  { greedy, sampled, samples }: { greedy: Rated[]; sampled: Rated[]; samples: number },
  trained: Attribute,
): Record<string, number> {
  const verdicts = (rated: Rated[]) => rated.map(({ verdict }) => verdict);
  const within = (rated: Rated[], one: Attribute) => {
    const cases = totalsByCase(rated, [one], { within: true });
    return areComparable(cases) ? disparityOf(cases) : UNKNOWN;
  };
  const { ratio, gini, variance, gap } = within(greedy, trained);
  const others = ATTRIBUTES.filter((attribute) => attribute !== trained);
  return {
    ...accuracies(verdicts(greedy)),
    'eval/appropriateness': mean(greedy.map(({ appropriateness }) => appropriateness)),
    'eval/disparity_ratio': ratio,
    'eval/gini': gini,
    'eval/variance': variance,
    'eval/gap': gap,
    'eval/same_for_twins': sameForTwins(greedy, FACTORS[trained].length),
    'eval/invasiveness': mean(greedy.flatMap(({ points }) => points ?? [])),
    ...Object.fromEntries(others.map((one) => [`eval/disparity_ratio/${one}`, within(greedy, one).ratio])),
    ...passAtK(inGroups(verdicts(sampled), samples)),
    ...(samples > 0 ? { 'eval/sampled_disparity_ratio': within(sampled, trained).ratio } : {}),
  };
}
