/** What a run has changed: report.md, report.html and a picture, from what was recommended before the first step and after the last. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { TopLevelSpec } from 'vega-lite';
import { readJsonLines } from '../lib/environments/json_lines.ts';
import { writeFileAtomically } from '../lib/folders.ts';
import { draw, STYLE } from '../lib/run/curves.ts';
import { type Block, escapeText, toHtml, toMarkdown } from '../lib/run/document.ts';
import { type LogEntry, toCsv } from '../lib/run/metrics.ts';
import { counted } from '../lib/text.ts';
import { ATTRIBUTES, type Attribute, describeProfile, FACTORS } from '../tasks/vignettes/profiles.ts';
import {
  type Disparity,
  groupsBy,
  type Measured,
  measuredDisparity,
  measuredMean,
  measuredMeans,
  PAIRS,
  ratioByChance,
  sameForTwins,
} from './metrics.ts';
import type { Rated } from './task.ts';

/** Where the greedy recommendations for all held-out vignettes are kept. */
const FILES = { before: 'vignettes_before.jsonl', after: 'vignettes_after.jsonl' };

/** What was kept: recommendations, and after how many steps. */
type Kept = { step: number; rated: Rated[] };

/** Keeps what was recommended before the first step, or after the last, a line a vignette. */
export function keepRated(
  folder: string,
  rated: Rated[],
  { step, maxSteps }: { step: number; maxSteps: number },
): void {
  if (step !== 0 && step !== maxSteps) return;
  const lines = rated.map(({ caseNumber, complaint, profile, recommended, points, appropriateness, verdict }) => {
    const worth = { points: points ?? null, appropriateness, verdict };
    return JSON.stringify({ step, caseNumber, complaint, profile, recommended, ...worth });
  });
  writeFileAtomically(join(folder, step === 0 ? FILES.before : FILES.after), `${lines.join('\n')}\n`);
}

function readRated(folder: string, when: keyof typeof FILES): Kept | undefined {
  const file = join(folder, FILES[when]);
  if (!existsSync(file)) return undefined;
  const lines = readJsonLines(file, (line) => line as Omit<Rated, 'points'> & { step: number; points: number | null });
  return { step: lines[0]?.step, rated: lines.map((line) => ({ ...line, points: line.points ?? undefined })) };
}

type Told = {
  attribute: Attribute;
  modelName: string;
  group: string;
  rewardWeights: readonly number[];
  seed: number;
  evalSize: number;
};

/**
 * Writes training_history.csv, with a line a step; and, once there is something after the last step, the report.
 * @param history - the entries of metrics.jsonl
 */
export async function writeReport(folder: string, history: LogEntry[], options: Told): Promise<void> {
  const lines = history.map(({ step, ...metrics }) => ({ iteration: step, ...metrics }));
  writeFileAtomically(join(folder, 'training_history.csv'), toCsv(lines as unknown as LogEntry[]));
  const [before, after] = [readRated(folder, 'before'), readRated(folder, 'after')];
  if (!after && options.evalSize === 0) console.log('no report: --eval-size 0 asks no held-out vignettes');
  if (!after || after.step !== history.at(-1)?.step) return; // an older end of this run has its report already
  // Whoever goes on with another --num-samples asks others than before.
  const asked = ({ rated }: Kept) =>
    rated.map(({ complaint, profile }) => complaint + describeProfile(profile)).join('\n');
  const isSame = before !== undefined && asked(before) === asked(after);
  if (before && !isSame)
    console.log('before the first step other vignettes were asked: the report says only what is after');
  const found = { before: isSame ? before.rated : undefined, after: after.rated };
  const svg = await draw(picture(found, options.attribute));
  const figure = {
    markdown: '![Mean invasiveness by group, before and after](means.svg)',
    html: `<figure>${svg}</figure>`,
  };
  const blocks = describe(found, options, after.step);
  writeFileAtomically(join(folder, 'means.svg'), svg);
  writeFileAtomically(join(folder, 'report.md'), toMarkdown(blocks, { means: figure }));
  writeFileAtomically(join(folder, 'report.html'), toHtml(blocks, { means: figure }, { title: 'Fairness' }));
  console.log(`report: ${folder}/report.html and report.md`);
}

type Found = { before: Rated[] | undefined; after: Rated[] };

// ─── Text ────────────────────────────────────────────────────────────────────────────────────────────────────────────

const show = ({ value, low, high }: Measured, digits = 2): string => {
  const number = (x: number) => (Number.isNaN(x) ? '–' : Number.isFinite(x) ? x.toFixed(digits) : '∞');
  const hasInterval = !Number.isNaN(value) && !Number.isNaN(low) && !Number.isNaN(high);
  return number(value) + (hasInterval ? ` (${number(low)} to ${number(high)})` : '');
};

/** The same of both, where there is a before. */
const both = <T>({ before, after }: Found, of: (rated: Rated[]) => T, empty: T): [T, T] => [
  before ? of(before) : empty,
  of(after),
];

const words = (attribute: Attribute): string => attribute.replaceAll('_', ' ');

const MEASURES: [keyof Disparity, string, number][] = [
  ['ratio', 'disparity ratio, largest to smallest mean (1: equal)', 3],
  ['gini', 'Gini coefficient (0: equal)', 4],
  ['variance', 'variance of the means', 3],
  ['gap', 'largest gap, points of 10', 2],
];

function describe(found: Found, { attribute, modelName, group, rewardWeights, seed }: Told, steps: number): Block[] {
  const head = (first: string) => [first, 'before', 'after'];
  const row = (name: string, of: (rated: Rated[]) => string) => [name, ...both(found, of, '–')];
  const ratio =
    (...attributes: Attribute[]) =>
    (rated: Rated[]) =>
      show(measuredDisparity(rated, 'ratio', ...attributes));
  const disparities = MEASURES.map(([measure, label, digits]) =>
    row(label, (rated) => show(measuredDisparity(rated, measure, attribute), digits)),
  );
  const percent = (of: (one: Rated) => boolean) => (rated: Rated[]) =>
    show(
      measuredMean(rated, (one) => 100 * Number(of(one))),
      1,
    );
  const twins = FACTORS[attribute].length;
  const byChance = (rated: Rated[]) => ({ value: ratioByChance(rated, attribute), low: Number.NaN, high: Number.NaN });
  const means = ATTRIBUTES.flatMap((one) => {
    const measured = both(found, (rated) => measuredMeans(rated, one), []);
    return groupsBy([one]).map((level, g) => [
      `${words(one)}: ${escapeText(level)}`,
      ...measured.map((all) => (all[g] ? show(all[g]) : '–')),
    ]);
  });
  return [
    { heading: `Fairness by ${words(attribute)}: ${escapeText(modelName)}` },
    {
      text: `<b>Disparity ratio on held-out cases: ${both(found, ratio(attribute), '–').join(' → ')}. Appropriate: ${both(
        found,
        percent(({ appropriateness }) => appropriateness === 1),
        '–',
      ).join(' → ')} %.</b>`,
    },
    {
      text: `${counted(steps, 'step')}, groups: ${group}, weights of format, appropriateness and fairness: ${rewardWeights.join(', ')}, seed ${seed}. ${found.after.length} vignettes of ${new Set(found.after.map(({ caseNumber }) => caseNumber)).size} held-out cases, answered greedily. In brackets: 95 % intervals, by a bootstrap over cases; of the mean of a group, that of its difference to the mean of all groups. A ratio of the largest to the smallest is above 1 by chance alone, and so is its interval: compare it with what chance makes. Points are compared within each case.`,
    },
    {
      text: 'The data are made up, and the bundled clinician is a toy with a bias that was put there on purpose: this is neither medical advice nor a measurement of any real model or people.',
    },
    { heading: 'Mean invasiveness by group' },
    { figure: 'means' },
    { heading: `The attribute that was trained on: ${words(attribute)}` },
    {
      table: [
        head(''),
        ...disparities,
        row('disparity ratio that chance alone makes', (rated) => show(byChance(rated), 3)),
        row('patients whose twins all get the same, %', (rated) => (100 * sameForTwins(rated, twins)).toFixed(1)),
        row(
          'appropriate, %',
          percent(({ appropriateness }) => appropriateness === 1),
        ),
        row('appropriateness, from 0 to 1', (rated) => show(measuredMean(rated, (one) => one.appropriateness))),
        row(
          'recommendations that can be read, %',
          percent(({ points }) => points !== undefined),
        ),
      ],
    },
    { heading: 'Disparity ratio by attribute' },
    { table: [head(''), ...ATTRIBUTES.map((one) => row(words(one), ratio(one)))] },
    { heading: 'Disparity ratio by pairs of attributes' },
    { table: [head(''), ...PAIRS.map((pair) => row(pair.map(words).join(' × '), ratio(...pair)))] },
    { heading: 'Means' },
    { table: [head('invasiveness, from 0 to 10'), ...means] },
  ];
}

// ─── Picture ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Mean invasiveness by group, before and after, with the intervals of {@link measuredMeans}: a small chart for each attribute, that trained on first. */
function picture({ before, after }: Found, trained: Attribute): TopLevelSpec {
  const sides = [...(before ? [{ when: 'before', rated: before }] : []), { when: 'after', rated: after }];
  const values = (attribute: Attribute) =>
    sides.flatMap(({ when, rated }) => {
      const levels: readonly string[] = FACTORS[attribute];
      return measuredMeans(rated, attribute).map(({ value, low, high }, g) => ({
        when,
        level: levels[g],
        value,
        low,
        high,
      }));
    });
  const order = [trained, ...ATTRIBUTES.filter((attribute) => attribute !== trained)];
  const isKnown = (means: { value: number }[]) => means.some(({ value }) => Number.isFinite(value));
  const all = order
    .map((attribute) => ({ attribute, values: values(attribute) }))
    .filter(({ attribute, values }) => attribute === trained || isKnown(values));
  const ends = all
    .flatMap(({ values }) => values.flatMap(({ value, low, high }) => [value, low, high]))
    .filter(Number.isFinite);
  const domain = [Math.floor(Math.min(...ends)), Math.ceil(Math.max(...ends))];
  const color = {
    field: 'when',
    type: 'nominal' as const,
    scale: { domain: ['before', 'after'], range: ['#c25400', '#0072b2'] },
    legend: { title: null, orient: 'top' as const },
  };
  const charts = all.map(({ attribute, values }, i) => ({
    title: `${words(attribute)}${attribute === trained ? ' (trained on)' : ''}`,
    width: 300,
    height: { step: 26, for: 'position' as const },
    data: { values },
    encoding: {
      y: {
        field: 'level',
        type: 'nominal' as const,
        sort: [...FACTORS[attribute]],
        axis: { title: null, labelLimit: 200 },
      },
      yOffset: { field: 'when', type: 'nominal' as const, sort: ['before', 'after'], scale: { paddingOuter: 0.3 } },
      color: i === 0 ? color : { ...color, legend: null },
    },
    layer: [
      {
        mark: { type: 'rule' as const, strokeWidth: 1.5 },
        encoding: {
          x: {
            field: 'low',
            type: 'quantitative' as const,
            scale: { domain, zero: false },
            axis: {
              title: i >= all.length - 2 ? 'mean invasiveness, from 0 to 10' : null,
              grid: true,
              gridColor: '#eaeef2',
            },
          },
          x2: { field: 'high' },
        },
      },
      {
        mark: { type: 'point' as const, filled: true, size: 50, opacity: 1 },
        encoding: {
          x: { field: 'value', type: 'quantitative' as const },
          shape: {
            ...color,
            scale: { domain: ['before', 'after'], range: ['square', 'circle'] },
            legend: i === 0 ? color.legend : null,
          },
        },
      },
    ],
  }));
  return {
    ...STYLE,
    columns: 2,
    concat: charts,
    resolve: { legend: { color: 'independent', shape: 'independent' } },
  } as unknown as TopLevelSpec;
}
