/**
 * Draws fairness against appropriateness, over the weight of fairness, from the runs of a comparison: trade_off.svg and
 * trade_off.md, in its folder.
 *
 *   npm run compare -- --experiments "fairness --reward-weights 1,1,0,fairness --reward-weights 1,1,1" --max-steps 100
 *   node --import tsx tools/trade_off.ts --comparison runs/compare-<time>
 */
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { Command } from '@commander-js/extra-typings';
import type { TopLevelSpec } from 'vega-lite';
import { runMain } from '../lib/cli/main.ts';
import { examples, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { writeFileAtomically } from '../lib/folders.ts';
import { readJsonObject } from '../lib/json.ts';
import { draw, STYLE } from '../lib/run/curves.ts';
import { toMarkdown } from '../lib/run/document.ts';
import { kebab, NOT_TAKEN_OVER } from '../lib/run/saved_options.ts';
import { intervalOfSeeds } from './compare_curves.ts';
import { type FinishedRun, readRun, runFolder } from './compare_report.ts';

export const command = new Command('trade_off')
  .description('Draws fairness against appropriateness, over the weight of fairness, from the runs of a comparison.')
  .addHelpText('after', examples('npm run trade-off -- --comparison runs/compare-<time>'))
  .option('--comparison <folder>', 'of npm run compare, with variants of fairness that differ in --reward-weights')
  .helpOption('-h, --help', 'display help for command');

/** Over seeds: the mean, and half the width of its 95 % interval, where there are enough of them. */
type Measured = { mean: number; half?: number };
type Point = { weight: number; ratio: Measured; appropriate: Measured };

function pointOf(weight: number, runs: FinishedRun[]): Point {
  const last = (metric: string, factor: number) =>
    intervalOfSeeds(runs.map(({ entries }) => factor * Number(entries.at(-1)?.[metric] ?? Number.NaN)));
  return { weight, ratio: last('eval/disparity_ratio', 1), appropriate: last('eval/accuracy', 100) };
}

function picture(points: Point[]): TopLevelSpec {
  const ends = ({ mean, half = 0 }: Measured) => ({ mean, low: mean - half, high: mean + half });
  const flat = ({ weight, ratio, appropriate }: Point) => ({
    ...{ weight, label: `w = ${weight}`, ratio: ratio.mean, low: ends(ratio).low, high: ends(ratio).high },
    ...{
      appropriate: appropriate.mean,
      left: Math.max(0, ends(appropriate).low),
      right: Math.min(100, ends(appropriate).high),
    },
  });
  const values = points.map(flat);
  const x = (field: string) => ({
    ...{ field, type: 'quantitative' as const, scale: { zero: false, nice: true } },
    axis: { title: 'appropriate recommendations on held-out cases, %', format: 'd' },
  });
  const y = (field: string) => ({
    ...{ field, type: 'quantitative' as const, scale: { zero: false, nice: true } },
    axis: { title: 'disparity ratio (1: equal)', format: '.2f' },
  });
  const color = '#0072b2';
  const text = { type: 'text' as const, align: 'left' as const, dx: 8, dy: -8, fontSize: 11 };
  return {
    ...STYLE,
    ...{ width: 460, height: 300, data: { values } },
    layer: [
      {
        mark: { type: 'line', color, strokeWidth: 1, opacity: 0.5 },
        encoding: { x: x('appropriate'), y: y('ratio'), order: { field: 'weight' } },
      },
      { mark: { type: 'rule', color }, encoding: { x: x('left'), x2: { field: 'right' }, y: y('ratio') } },
      { mark: { type: 'rule', color }, encoding: { x: x('appropriate'), y: y('low'), y2: { field: 'high' } } },
      {
        mark: { type: 'point', filled: true, size: 60, opacity: 1, color },
        encoding: { x: x('appropriate'), y: y('ratio') },
      },
      {
        mark: { ...text, color: '#24292f' },
        encoding: { x: x('appropriate'), y: y('ratio'), text: { field: 'label' } },
      },
    ],
  };
}

/** The first option, other than weights, seed and place, in which runs differ. */
function differingOption(runs: FinishedRun[]): string | undefined {
  const mayDiffer = [...NOT_TAKEN_OVER, 'rewardWeights', 'seed', 'templateDate'];
  const names = new Set(runs.flatMap(({ options }) => Object.keys(options)));
  const differs = (key: string) => runs.some(({ options }) => !isDeepStrictEqual(options[key], runs[0].options[key]));
  const differing = [...names].find((key) => !mayDiffer.includes(key) && differs(key));
  return differing === undefined ? undefined : `--${kebab(differing)}`;
}

async function main(): Promise<void> {
  const { comparison } = parseOptions(command);
  if (comparison === undefined) throw new UserError('name a comparison, as in --comparison runs/compare-<time>');
  const saved = await readJsonObject(join(comparison, 'compare.json'));
  const { experiments, seeds, maxSteps } = (saved?.options ?? {}) as {
    experiments?: string[];
    seeds: number[];
    maxSteps: number;
  };
  if (!experiments)
    throw new UserError(`${comparison} is not the folder of a comparison: it has no compare.json of one`);
  const runs: FinishedRun[][] = [];
  for (const variant of experiments) {
    const found = await Promise.all(seeds.map((seed) => readRun(runFolder(comparison, variant, seed), maxSteps)));
    runs.push(found.filter((run) => run !== undefined));
    if (runs.at(-1)!.length === 0) throw new UserError(`${comparison} has no finished run of ${variant}`);
  }
  const differing = differingOption(runs.flat());
  if (differing !== undefined) {
    throw new UserError(
      `${comparison} has variants that differ in ${differing}, not in --reward-weights alone: compare them without that`,
    );
  }
  const weightOf = ([{ options }]: FinishedRun[]) => (options.rewardWeights as number[] | undefined)?.[2] ?? Number.NaN;
  const points = runs.map((ofVariant) => pointOf(weightOf(ofVariant), ofVariant)).sort((a, b) => a.weight - b.weight);
  if (new Set(points.map(({ weight }) => weight)).size < points.length) {
    throw new UserError(`${comparison} has two variants with the same weight of fairness: compare one of each`);
  }
  const before = pointOf(
    0,
    runs.flat().map((run) => ({ ...run, entries: run.entries.filter(({ step }) => step === 0) })),
  );
  const isKnown = ({ weight, ratio, appropriate }: Point) => Number.isFinite(weight + ratio.mean + appropriate.mean);
  if (![...points, before].every(isKnown)) {
    throw new UserError(
      `${comparison} has runs without a weight of fairness, or without a disparity ratio before and after: compare variants of fairness, with evaluations`,
    );
  }
  const show = ({ mean, half }: Measured, digits: number) =>
    mean.toFixed(digits) + (half === undefined ? '' : ` ± ${half.toFixed(digits)}`);
  const table = [
    ['weight of fairness', 'disparity ratio', 'appropriate, %'],
    ['before', before.ratio.mean.toFixed(3), before.appropriate.mean.toFixed(1)],
    ...points.map(({ weight, ratio, appropriate }) => [String(weight), show(ratio, 3), show(appropriate, 1)]),
  ];
  writeFileAtomically(join(comparison, 'trade_off.svg'), await draw(picture(points)));
  writeFileAtomically(join(comparison, 'trade_off.md'), toMarkdown([{ table }], {}));
  console.log(`${comparison}/trade_off.svg and trade_off.md`);
}

await runMain(import.meta.url, main);
