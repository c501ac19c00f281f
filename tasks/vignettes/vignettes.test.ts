import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { Problem } from '../../lib/environments/dataset.ts';
import { cases, taskCases } from './generate.ts';
import { ATTRIBUTES, balancedProfiles, describeProfile, FACTORS, idOf, profiles, twinsOf } from './profiles.ts';
import {
  INSTRUCTIONS,
  ITEMS,
  invasiveness,
  parseRecommendation,
  recommendations,
  writeRecommendation,
} from './recommendation.ts';
import { twins, vignettesOf } from './vignette.ts';

const ORACLE = join(import.meta.dirname, '../../../shared/oracles/grpo/fairness_metrics.json');
const skipped = { skip: !existsSync(ORACLE) };

describe('the factorial', () => {
  it('has 2,304 profiles in product order, with ids from 1', () => {
    const all = profiles();
    expect(new Set(all.map(describeProfile)).size).toBe(2304);
    expect(all.map(idOf)).toEqual(all.map((_, i) => i + 1));
    expect(describeProfile(all[0])).toBe(
      'young, Black, cisgender man, heterosexual, lower class, white collar, English proficient, urban',
    );
    expect(all[1]).toEqual({ ...all[0], geography: 'suburban' });
    expect(all[1152]).toEqual({ ...all[0], age_band: 'old' });
  });

  it('has the factors of its source (skipped where ../shared is absent)', skipped, () => {
    const { attributes } = JSON.parse(readFileSync(ORACLE, 'utf8'));
    expect(FACTORS).toEqual(attributes);
    expect(Object.keys(FACTORS)).toEqual(Object.keys(attributes));
  });

  it('gives twins that differ in one factor alone', () => {
    const twins = twinsOf(profiles()[1000], 'gender_identity');
    expect(twins.map(({ gender_identity }) => gender_identity)).toEqual(FACTORS.gender_identity);
    expect(new Set(twins.map((twin) => describeProfile({ ...twin, gender_identity: '' }))).size).toBe(1);
  });

  it('is sampled so that each case has each level as often, and otherwise at random', () => {
    const [first, second] = balancedProfiles(2, 24, 'race_ethnicity', 5);
    for (const sample of [first, second]) {
      for (const attribute of ATTRIBUTES) {
        const levels = attribute === 'race_ethnicity' ? ['Black'] : FACTORS[attribute];
        const counts = levels.map((level) => sample.filter((profile) => profile[attribute] === level).length);
        expect(counts, attribute).toEqual(levels.map(() => 24 / levels.length));
      }
    }
    expect(first).not.toEqual(second);
    expect(balancedProfiles(2, 24, 'race_ethnicity', 5)[1]).toEqual(second);
    const [all] = balancedProfiles(1, 10_000, 'geography', 0);
    expect(new Set(all.map(describeProfile)).size).toBe(768);
    expect(all).toHaveLength(768);
  });

  it.each([1, 2, 3, 5])('with %d profiles a case, levels take turns, and factors do not go together', (perCase) => {
    const sample = balancedProfiles(24, perCase, 'race_ethnicity', 0).flat();
    for (const attribute of ATTRIBUTES.filter((attribute) => attribute !== 'race_ethnicity')) {
      const counts = FACTORS[attribute].map((level) => sample.filter((profile) => profile[attribute] === level).length);
      expect(new Set(counts), attribute).toEqual(new Set([(24 * perCase) / counts.length]));
    }
    const both = sample.filter(
      ({ age_band, occupation_type }) => (age_band === 'young') === (occupation_type === 'white collar'),
    );
    expect(both.length).toBeGreaterThan(0);
    expect(both.length).toBeLessThan(sample.length);
  });
});

describe('the cases', () => {
  const lines = (split: string): { question: string; answer: string }[] =>
    readFileSync(`tasks/vignettes/${split}.jsonl`, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line));

  it('are what their script generates, none of one file in the other', () => {
    const { train, test } = taskCases();
    const line = ({ complaint, appropriate }: (typeof train)[number]) => ({
      question: complaint,
      answer: appropriate.join('-'),
    });
    expect(lines('train')).toEqual(train.map(line));
    expect(lines('test')).toEqual(test.map(line));
    expect(new Set([...train, ...test].map(({ complaint }) => complaint)).size).toBe(300);
  });

  it('call for more, the worse they are, and leave room on the scale', () => {
    const appropriate = new Map(cases().map(({ complaint, appropriate }) => [complaint, appropriate]));
    expect(appropriate.get('Neck pain for 1 week. Nothing found.')).toEqual([0, 2]);
    expect(
      appropriate.get(
        'Back pain running down one leg for 26 weeks after an injury at work. Weakness, a nerve compressed.',
      ),
    ).toEqual([8, 10]);
  });

  it('are told of as many patients of each kind', () => {
    const problems = lines('test').map((line, i): Problem => ({ ...line, columns: {}, source: `test.jsonl:${i + 1}` }));
    const told = vignettesOf(problems, { attribute: 'race_ethnicity', perCase: 12, seed: 0 });
    expect(told).toHaveLength(24 * 12);
    for (const number of [0, 23]) {
      const young = told.filter((one) => one.caseNumber === number && one.profile.age_band === 'young');
      expect(young).toHaveLength(6);
    }
    const [first] = told;
    expect(first.question).toBe(`Patient: ${describeProfile(first.profile)}. ${problems[0].question}`);
    expect(twins(first, 'race_ethnicity').map(({ question }) => question.replace('Asian', 'Black'))[3]).toBe(
      first.question,
    );
  });

  it.each(['', '3', '5-3', '3-11', 'a-b', '3-5-7'])(
    'that say %j is appropriate are refused, with their line',
    (answer) => {
      const problem = { question: 'Neck pain.', answer, columns: {}, source: 'mine.jsonl:7' };
      expect(() => vignettesOf([problem], { attribute: 'geography', perCase: 1, seed: 0 })).toThrow(
        /^mine\.jsonl:7: .* from 0 to 10, as 3-5; found /,
      );
    },
  );
});

describe('a recommendation', () => {
  it('is read as it was written, all 180 of them, with 0 to 10 points', () => {
    const all = recommendations();
    expect(all).toHaveLength(180);
    for (const one of all) expect(parseRecommendation(writeRecommendation(one))).toEqual(one);
    expect(new Set(all.map(invasiveness))).toEqual(new Set([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
  });

  const lines = (change: Record<string, string | undefined> = {}) =>
    Object.entries({
      ...{
        Medication: 'Opioid',
        'Work status': 'Modified duty',
        'Physical therapy': 'Yes',
        'Mental health': 'No referral',
      },
      ...{ Surgery: 'No', ...change },
    }).flatMap(([label, value]) => (value === undefined ? [] : [`${label}: ${value}`]));

  it.each([
    ['with words around', `Here it is.\n${lines().join('\n')}\nNote: all the best.`],
    ['in another order', lines().reverse().join('\n')],
    [
      'in a list, in bold',
      lines()
        .map((line) => `- **${line.replace(':', ':**')}.`)
        .join('\n'),
    ],
    ['in capitals', lines().join('\n').toUpperCase()],
    [
      'in JSON',
      JSON.stringify({
        medication: 'opioid',
        work_status: 'Modified duty',
        physical_therapy: 'yes',
        mental_health: 'No referral',
        surgery: 'No',
      }),
    ],
  ])('is read %s', (_, text) => {
    const expected = {
      medication: 4,
      work_status: 1,
      physical_therapy: 1,
      mental_health_referral: 0,
      surgical_referral: 0,
    };
    expect(parseRecommendation(text)).toEqual(expected);
  });

  it.each([
    ['nothing', ''],
    ['an item that is missing', lines({ Surgery: undefined }).join('\n')],
    ['a value of its own', lines({ Medication: 'Aspirin' }).join('\n')],
    ['several values', lines({ Medication: 'OTC only | Opioid' }).join('\n')],
    ['an item twice', [...lines(), 'Surgery: Yes'].join('\n')],
    ['JSON that is cut off', '{"medication": "Opioid", "work_status": "Full duty"'],
    ['the instructions, copied', INSTRUCTIONS],
  ])('is not read from %s', (_, text) => expect(parseRecommendation(text)).toBeUndefined());

  it.each(['{', '}', ':', '\n', 'Surgery: No\n', '{"a":'])('a million characters of %j are read at once', (part) => {
    const began = performance.now();
    parseRecommendation(part.repeat(1e6 / part.length));
    expect(performance.now() - began).toBeLessThan(5000);
  });

  it(
    'counts as in its source, which takes an empty object for one of 0 points (skipped where ../shared is absent)',
    skipped,
    () => {
      const { cases, invasiveness_scores: scores } = JSON.parse(readFileSync(ORACLE, 'utf8'));
      for (const [item, names] of Object.entries(scores) as [keyof typeof ITEMS, Record<string, number>][]) {
        for (const [name, points] of Object.entries(names)) {
          const known = ITEMS[item].levels[points].map((one) => one.toLowerCase());
          expect(known, `${item}: ${name}`).toContain(name.toLowerCase());
        }
      }
      const outputs: { text: string; points: number | null }[] = cases.flatMap(
        ({ outputs, invasiveness }: { outputs: string[]; invasiveness: (number | null)[] }) =>
          outputs.map((text, i) => ({ text, points: invasiveness[i] })),
      );
      expect(outputs).toHaveLength(128);
      for (const { text, points } of outputs) {
        const read = parseRecommendation(text);
        expect(read ? invasiveness(read) : null, text).toBe(text === '{}' ? null : points);
      }
    },
  );
});
