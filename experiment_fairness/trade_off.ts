/**
 * Draws fairness against appropriateness, over the weight of fairness, from the runs of a comparison: trade_off.svg and
 * trade_off.md, in its folder.
 *
 *   npm run compare -- --experiments "fairness --reward-weights 1,1,0,fairness --reward-weights 1,1,1" --max-steps 100
 *   node --import tsx experiment_fairness/trade_off.ts --comparison runs/compare-<time>
 */
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import type { TopLevelSpec } from 'vega-lite';
import { runMain } from '../lib/cli/main.ts';
import { examples, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { writeFileAtomically } from '../lib/folders.ts';
import { readJsonObject } from '../lib/json.ts';
import { draw, STYLE } from '../lib/run/curves.ts';
import { toMarkdown } from '../lib/run/document.ts';
import { interval } from '../tools/compare_curves.ts';
import { type FinishedRun, readRun, runFolder } from '../tools/compare_report.ts';

export const command = new Command('trade_off')
  .description('Draws fairness against appropriateness, over the weight of fairness, from the runs of a comparison.')
  .addHelpText('after', examples('node --import tsx experiment_fairness/trade_off.ts --comparison runs/compare-<time>'))
  .option('--comparison <folder>', 'of npm run compare, with variants of fairness that differ in --reward-weights')
  .helpOption('-h, --help', 'display help for command');

/** What became of a weight: over seeds, means and half the widths of their 95 % intervals. */
type Point = { weight: number; ratio: number; ratioHalf: number; appropriate: number; appropriateHalf: number };

function pointOf(weight: number, runs: FinishedRun[]): Point {
  const last = (metric: string) => interval(runs.map(({ entries }) => Number(entries.at(-1)![metric])));
  const [ratio, appropriate] = [last('eval/disparity_ratio'), last('eval/accuracy')];
  return {
    ...{ weight, ratio: ratio.mean, ratioHalf: ratio.half ?? 0 },
    ...{ appropriate: 100 * appropriate.mean, appropriateHalf: 100 * (appropriate.half ?? 0) },
  };
}

function picture(points: Point[], before: { ratio: number; appropriate: number }): TopLevelSpec {
  const values = points.map((point) => ({
    ...point,
    ...{ left: point.appropriate - point.appropriateHalf, right: point.appropriate + point.appropriateHalf },
    ...{ low: point.ratio - point.ratioHalf, high: point.ratio + point.ratioHalf, label: `weight ${point.weight}` },
  }));
  const x = (field: string) => ({
    ...{ field, type: 'quantitative' as const, scale: { zero: false, nice: true } },
    axis: { title: 'appropriate recommendations on held-out cases, %', format: 'd' },
  });
  const y = (field: string) => ({
    ...{ field, type: 'quantitative' as const, scale: { zero: false, nice: true } },
    axis: { title: 'disparity ratio (1: equal)', format: '.2f' },
  });
  const [color, start] = ['#0072b2', '#c25400'];
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
      {
        data: { values: [{ ...before, label: 'before' }] },
        layer: [
          { mark: { type: 'point', filled: true, shape: 'square', size: 60, opacity: 1, color: start } },
          { mark: { ...text, color: start }, encoding: { text: { field: 'label' } } },
        ],
        encoding: { x: x('appropriate'), y: y('ratio') },
      },
    ],
  };
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
  const weightOf = ([{ options }]: FinishedRun[]) => (options.rewardWeights as number[] | undefined)?.[2] ?? Number.NaN;
  const points = runs.map((ofVariant) => pointOf(weightOf(ofVariant), ofVariant)).sort((a, b) => a.weight - b.weight);
  if (points.some(({ weight, ratio }) => !Number.isFinite(weight + ratio))) {
    throw new UserError(
      `${comparison} has runs without a weight of fairness, or without an evaluation: compare variants of fairness`,
    );
  }
  const start = pointOf(
    0,
    runs.flat().map((run) => ({ ...run, entries: run.entries.slice(0, 1) })),
  );
  const show = (value: number, half: number, digits: number) => `${value.toFixed(digits)} ± ${half.toFixed(digits)}`;
  const rows = points.map((point) => [
    ...[String(point.weight), show(point.ratio, point.ratioHalf, 3)],
    show(point.appropriate, point.appropriateHalf, 1),
  ]);
  const table = [
    ['weight of fairness', 'disparity ratio', 'appropriate, %'],
    ['before', start.ratio.toFixed(3), start.appropriate.toFixed(1)],
    ...rows,
  ];
  writeFileAtomically(join(comparison, 'trade_off.svg'), await draw(picture(points, start)));
  writeFileAtomically(join(comparison, 'trade_off.md'), toMarkdown([{ table }], {}));
  console.log(`${comparison}/trade_off.svg and trade_off.md`);
}

await runMain(import.meta.url, main);
