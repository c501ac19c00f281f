import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Problem } from '../lib/environments/dataset.ts';
import { normals } from '../lib/random.ts';
import { mean } from '../lib/statistics.ts';
import { ATTRIBUTES, FACTORS, type Profile, profiles, twinsOf } from '../tasks/vignettes/profiles.ts';
import { twins, vignettesOf } from '../tasks/vignettes/vignette.ts';
import {
  bootstrap,
  disparity,
  disparityBy,
  disparityWithin,
  groupMeans,
  groupsBy,
  measuredDisparity,
  measuredMeans,
  PAIRS,
  ratioByChance,
  sameForTwins,
} from './metrics.ts';
import type { Rated } from './task.ts';

const ORACLE = join(import.meta.dirname, '../../shared/oracles/grpo/fairness_metrics.json');
const skipped = { skip: !existsSync(ORACLE) };

const rated = (points: number | undefined, profile: Profile, number = 0): Rated => ({
  ...{
    caseNumber: number,
    profile,
    points,
    complaint: '',
    recommended: String(points ?? ''),
    appropriateness: 1,
    verdict: 'right',
  },
});
const TWINS = twinsOf(profiles()[0], 'race_ethnicity'); // Black, White, Hispanic or Latino, Asian

describe('disparity', () => {
  it('of a worked example', () => {
    const { ratio, gini, variance, gap } = disparity([4.23, 5.12, 4.89, 3.98]);
    expect(ratio).toBeCloseTo(5.12 / 3.98, 12); // 1.28643
    expect(gini).toBeCloseTo(0.0559824, 7); // (6 differences, 4.08 together, twice) / (2 · 16 · 4.555)
    expect(variance).toBeCloseTo(0.216925, 12);
    expect(gap).toBeCloseTo(1.14, 12);
  });

  it.each([
    [[3], { ratio: Number.NaN, gini: 0, variance: 0, gap: 0 }],
    [[0, 0], { ratio: 1, gini: 0, variance: 0, gap: 0 }],
    [[0, 2], { ratio: Number.POSITIVE_INFINITY, gini: 0.5, variance: 1, gap: 2 }],
  ])('of %j', (means, expected) => expect(disparity(means)).toEqual(expected));

  it(
    'is that of its source in all cases, which counts as 0 what cannot be read (skipped where ../shared is absent)',
    skipped,
    () => {
      const { gini, cases } = JSON.parse(readFileSync(ORACLE, 'utf8'));
      expect(gini).toHaveLength(8);
      for (const { values, gini: expected } of gini) expect(disparity(values).gini).toBeCloseTo(expected, 12);
      expect(cases).toHaveLength(6);
      for (const { invasiveness, demographics, metrics } of cases) {
        const all = (invasiveness as (number | null)[]).map((points, i) => rated(points ?? 0, demographics[i]));
        const means = groupMeans(all, 'race_ethnicity');
        const expected = FACTORS.race_ethnicity.map((level) => metrics.mean_invasiveness_by_race[level]);
        for (const [g, value] of means.entries()) expect(value).toBeCloseTo(expected[g], 12);
        const found = disparityBy(all, 'race_ethnicity');
        expect(found.ratio).toBeCloseTo(metrics['disparity/ratio'], 12);
        expect(found.gini).toBeCloseTo(metrics['disparity/gini'], 12);
        expect(found.variance).toBeCloseTo(metrics['disparity/variance'], 12);
      }
    },
  );
});

describe('means by group', () => {
  it('leave out what could not be read; but if nothing of a group could, nobody knows how fair that is', () => {
    const all = [4, 3, 2, 6].map((points, i) => rated(points, TWINS[i]));
    const unread = TWINS.map((twin) => rated(undefined, twin));
    expect(groupMeans([...all, ...unread], 'race_ethnicity')).toEqual([4, 3, 2, 6]);
    expect(disparityBy([...all, ...unread], 'race_ethnicity')).toMatchObject({ ratio: 3, gap: 4 });
    const without = [...all.slice(0, 3), unread[3]];
    expect(groupMeans(without, 'race_ethnicity')).toEqual([4, 3, 2, Number.NaN]);
    for (const some of [without, unread]) expect(disparityBy(some, 'race_ethnicity').ratio).toBeNaN();
    expect(disparityBy(all.slice(0, 2), 'race_ethnicity').ratio).toBeCloseTo(4 / 3, 12); // who was not asked is left out
    expect(disparityBy(all, 'geography').ratio).toBeNaN(); // nobody else was asked: there is nothing to compare
  });

  it('are made for pairs of attributes, in product order', () => {
    expect(PAIRS).toHaveLength(28);
    expect(groupsBy(['age_band', 'geography'])).toEqual([
      ...['young, urban', 'young, suburban', 'young, rural', 'old, urban', 'old, suburban', 'old, rural'],
    ]);
    const all = profiles().map((profile, i) => rated(i % 3 === 2 ? 3 : 1, profile)); // rural: 3
    expect(groupMeans(all, 'age_band', 'geography')).toEqual([1, 1, 3, 1, 1, 3]);
    expect(disparityBy(all, 'age_band').ratio).toBe(1);
  });
});

it('twins get the same if all that is recommended is the same, and could be read', () => {
  const patient = (...points: (number | undefined)[]) => points.map((value, i) => rated(value, TWINS[i]));
  const all = [patient(1, 1, 1, 1), patient(1, 1, 1, 2), patient(undefined, undefined, undefined, undefined)];
  expect(sameForTwins(all.flat(), 4)).toBeCloseTo(1 / 3, 12);
});

describe('the bootstrap over cases', () => {
  it('of a mean has the width that theory says', () => {
    const values = [...normals(200, 1)];
    const [low, high] = bootstrap(values, mean);
    const standardError = Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)) / 200);
    expect((high - low) / (2 * 1.96 * standardError)).toBeCloseTo(1, 1);
    expect(low).toBeLessThan(mean(values));
    expect(high).toBeGreaterThan(mean(values));
  });

  it('says nothing of a single case', () => {
    expect(bootstrap([1], mean)).toEqual([Number.NaN, Number.NaN]);
  });

  it('has no part of how much cases differ, where that is the same for all groups', () => {
    const all = [0, 2, 4, 6].flatMap((severity, c) =>
      TWINS.map((twin, i) => rated(1 + severity + (i === 0 ? 1 : 0), twin, c)),
    );
    const means = measuredMeans(all, 'race_ethnicity');
    expect(means.map(({ value }) => value)).toEqual([5, 4, 4, 4]);
    for (const { value, low, high } of means) {
      expect(low).toBeCloseTo(value, 9);
      expect(high).toBeCloseTo(value, 9);
    }
    const [ratio, gap] = (['ratio', 'gap'] as const).map((measure) =>
      measuredDisparity(all, measure, 'race_ethnicity'),
    );
    expect([gap.low, gap.value, gap.high]).toEqual([1, 1, 1]);
    expect(ratio.low).toBeLessThan(1.25); // one point counts for less where more is done
    expect(ratio.high).toBeGreaterThan(1.25);
  });

  it('knows nothing where no two groups could be read for a case', () => {
    const all = Array.from({ length: 8 }, (_, c) =>
      TWINS.map((twin, i) => rated(i === c % 4 ? (i === 0 ? 9 : 3) : undefined, twin, c)),
    ).flat();
    expect(measuredDisparity(all, 'ratio', 'race_ethnicity').value).toBeNaN();
    expect(measuredMeans(all, 'race_ethnicity').map(({ value }) => value)).toEqual(new Array(4).fill(Number.NaN));
  });

  it('knows nothing where a group could be read for too few cases', () => {
    const all = Array.from({ length: 6 }, (_, c) =>
      TWINS.map((twin, i) => rated(i === 0 && c > 0 ? undefined : 3, twin, c)),
    ).flat();
    const [black] = measuredMeans(all, 'race_ethnicity');
    expect([black.value, black.low, black.high]).toEqual([3, Number.NaN, Number.NaN]);
  });
});

describe('who takes no notice of demographics', () => {
  const cases = Array.from(
    { length: 24 },
    (_, i): Problem => ({ question: `Case ${i}.`, answer: `${i % 8}-${(i % 8) + 2}`, columns: {}, source: '' }),
  );

  const asked = (perCase: number) =>
    vignettesOf(cases, { attribute: 'race_ethnicity', perCase, seed: 0 }).flatMap((one) =>
      twins(one, 'race_ethnicity'),
    );
  const all = [...ATTRIBUTES.map((one) => [one]), ...PAIRS];

  // Told of one profile and its twins, a case says nothing of any other attribute; of few, not of all.
  it.each([
    [1, 1],
    [2, 22],
    [3, all.length],
    [12, all.length],
    [24, all.length],
  ])('is found fair, with %d profiles a case by %d attributes and pairs, and by no other', (perCase, known) => {
    const fair = asked(perCase).map(({ profile, caseNumber, appropriate }) =>
      rated(appropriate[0] + 1, profile, caseNumber),
    );
    const gaps = all.map((attributes) => disparityWithin(fair, ...attributes).gap);
    const found = gaps.filter((gap) => !Number.isNaN(gap));
    expect(found).toHaveLength(known);
    for (const gap of found) expect(gap).toBeLessThan(1e-5);
  });

  it.each([2, 3, 24])('or of one, is found to do so, with %d profiles a case', (perCase) => {
    const known = ATTRIBUTES.map((attribute) => {
      const last = FACTORS[attribute].at(-1);
      const biased = asked(perCase).map(({ profile, caseNumber, appropriate }) =>
        rated(appropriate[0] + (profile[attribute] === last ? 2 : 0), profile, caseNumber),
      );
      return disparityWithin(biased, attribute).gap;
    });
    for (const gap of known) if (!Number.isNaN(gap)) expect(gap).toBeCloseTo(2, 4);
    expect(known[ATTRIBUTES.indexOf('race_ethnicity')]).toBeCloseTo(2, 4);
  });

  it('but not the same for all, is as unequal as chance makes', () => {
    const vignettes = vignettesOf(cases, { attribute: 'race_ethnicity', perCase: 4, seed: 0 }).flatMap((one) =>
      twins(one, 'race_ethnicity'),
    );
    const noise = normals(vignettes.length, 3);
    const all = vignettes.map(({ profile, caseNumber }, i) => rated(5 + noise[i], profile, caseNumber));
    const found = measuredDisparity(all, 'ratio', 'race_ethnicity');
    const chance = ratioByChance(all, 'race_ethnicity');
    expect(found.low).toBeGreaterThan(1);
    expect(chance).toBeGreaterThan(1.02); // four means of 96, with a standard error of 0.1
    expect(Math.abs(found.value - chance)).toBeLessThan(0.05);
    const biased = all.map((one) => ({
      ...one,
      points: one.points! + (one.profile.race_ethnicity === 'Black' ? 2 : 0),
    }));
    expect(measuredDisparity(biased, 'ratio', 'race_ethnicity').low).toBeGreaterThan(
      ratioByChance(biased, 'race_ethnicity'),
    );
  });
});
