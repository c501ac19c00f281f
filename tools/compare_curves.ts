/** The curves of a comparison: of each variant the seeds, their mean, and a band that says how sure that mean is. */
// @ts-expect-error its types are only found by require()
import { compiled, stdtri } from 'cephes';
import type { TopLevelSpec } from 'vega-lite';
import { draw, PANELS, type Panel, smoothing } from '../lib/run/curves.ts';
import { colourVariables, DARK, LIGHT } from '../lib/run/document.ts';
import type { LogEntry } from '../lib/run/metrics.ts';
import { mean } from '../lib/statistics.ts';

await compiled; // WebAssembly

/** The mean of values, one a seed, and half the width of its 95 % interval (Student's t), which takes two at least. */
export function interval(values: number[]): { mean: number; half?: number; n: number } {
  const [center, n] = [mean(values), values.length];
  if (n < 2) return { mean: center, n };
  const variance = values.reduce((sum, value) => sum + (value - center) ** 2, 0) / (n - 1);
  return { mean: center, half: stdtri(n - 1, 0.975) * Math.sqrt(variance / n), n };
}

/** Seeds from which on a report shows intervals: that of two is 3.6 times as wide as that of three, and says nothing. */
export const FEWEST_SEEDS = 3;

/** As {@link interval}, but none of fewer than {@link FEWEST_SEEDS} values. */
export const intervalOfSeeds: typeof interval = (values) =>
  values.length < FEWEST_SEEDS ? { mean: mean(values), n: values.length } : interval(values);

/** Those of the values that are finite numbers. */
export const numbers = (values: unknown[]): number[] => values.filter((value) => Number.isFinite(value)) as number[];

/** How a variant looks: never by its colour alone. Colours after Okabe and Ito, darker or lighter where it needs contrast. */
const LOOKS = [
  { dash: [1, 0], shape: 'circle', light: '#0072b2', dark: '#56b4e9' },
  { dash: [6, 3], shape: 'square', light: '#c25400', dark: '#ff9448' },
  { dash: [2, 2], shape: 'triangle-up', light: '#007f5f', dark: '#2fc49b' },
  { dash: [9, 3, 2, 3], shape: 'diamond', light: '#a5487f', dark: '#e39bc7' },
  { dash: [12, 4], shape: 'triangle-down', light: '#8f6400', dark: '#f0e442' },
  { dash: [4, 2, 1, 2, 1, 2], shape: 'cross', light: '#333333', dark: '#dddddd' },
];
export const MOST_VARIANTS = LOOKS.length;

type Palette = typeof LIGHT & { variants: string[] };
const ON_PAPER: Palette = { ...LIGHT, variants: LOOKS.map(({ light }) => light) };
/** In report.html the colours are left to its style sheet, which knows what the reader's screen prefers. */
const ON_SCREEN: Palette = {
  ...(Object.fromEntries(Object.keys(LIGHT).map((name) => [name, `var(--${name})`])) as typeof LIGHT),
  variants: LOOKS.map((_, v) => `var(--variant-${v})`),
};

/** A place on the horizontal axis: a number, or one of its values. */
type X = number | string;
type Point = { variant: string; x: X; mean: number; low?: number; high?: number; marked: boolean };
type SeedPoint = { variant: string; seed: number; x: X; value: number };
/** The horizontal axis: from 0 to a number, or values at equal distances. */
type Axis = { title: string; end: number } | { title: string; values: X[] };
/** `points` are of the means, `seeds` of the runs; `before`, where there is one, is of all before the first step. */
type Chart = {
  panel: Panel;
  axis: Axis;
  points: Point[];
  seeds: SeedPoint[];
  before?: { x: X; mean: number }[];
  range: [low: number, high: number];
};

const LENGTH = PANELS.find(({ metric }) => metric === 'completions/mean_length')!;
const LENGTHS = ['right', 'wrong'].map((kind) => {
  return { ...LENGTH, metric: `completions/mean_${kind}_length`, title: `Length of ${kind} answers` };
});
const SHOWN = [
  ...PANELS.filter(({ metric }) => ['reward', 'eval/accuracy', 'eval/disparity_ratio'].includes(metric)),
  ...LENGTHS,
  LENGTH,
  ...PANELS.filter(({ metric }) => ['kl', 'entropy', 'grad_norm'].includes(metric)),
];

/** All panels of a run, with the lengths of right and wrong answers. */
export const ALL_PANELS: Panel[] = PANELS.flatMap((panel) => (panel === LENGTH ? [panel, ...LENGTHS] : [panel]));

/**
 * Metrics against the step: those that occur.
 * @param runs - metrics of each run, by variant and seed
 */
export function stepCharts(variants: string[], runs: LogEntry[][][], shown = SHOWN): Chart[] {
  const end = Math.max(1, ...runs.flat().map((entries) => entries.at(-1)!.step));
  const charts = shown
    .map((panel) => {
      const smooth = runs.map((ofVariant) => ofVariant.map((entries) => smoothed(panel, entries)));
      const points = variants.flatMap((variant, v) => curve(smooth[v], variant, v / variants.length));
      const seeds = variants.flatMap((variant, v) =>
        smooth[v].flatMap((values, seed) => [...values].map(([x, value]) => ({ variant, seed, x, value }))),
      );
      return { panel, axis: { title: 'step', end }, points, seeds, range: rangeOf(panel, points, seeds) };
    })
    .filter(({ points }) => points.length > 0);
  const lengths = charts.filter(({ panel }) => LENGTHS.includes(panel));
  const shared = lengths.map(({ range }) => range);
  for (const chart of lengths) {
    chart.range = [Math.min(...shared.map(([low]) => low)), Math.max(...shared.map(([, high]) => high))];
  }
  return charts;
}

/** The mean of values, one a seed, with its interval, as a point. */
function pointOf(variant: string, x: X, values: number[], marked: boolean): Point {
  const { mean, half } = intervalOfSeeds(values);
  return { variant, x, mean, ...(half === undefined ? {} : { low: mean - half, high: mean + half }), marked };
}

/** The name under which a run logs pass@k: pass@1 is the share of right samples. */
const passAt = (k: number) => (k === 1 ? 'eval/sampled_accuracy' : `eval/pass_at_${k}`);

/** The k, above 1, of which a run has measured pass@k. */
export const ksOf = (entries: LogEntry[]): number[] =>
  Object.keys(entries.at(-1)!).flatMap((name) => Number(/^eval\/pass_at_(\d+)$/.exec(name)?.[1] ?? []));

/**
 * pass@k against k, before the first step and after the last; undefined where runs do not have it.
 * @param runs - metrics of each run, by variant and seed
 * @param options.common - whether all started from the same model
 */
export function passAtKChart(
  variants: string[],
  runs: LogEntry[][][],
  { common }: { common: boolean },
): Chart | undefined {
  const all = runs.flat();
  const ks = [1, ...ksOf(all[0])];
  const has = (k: number) => all.every((entries) => Number.isFinite(entries.at(-1)![passAt(k)]));
  const values = ks.filter(has).sort((a, b) => a - b);
  if (values.length < 3) return undefined;
  const panel: Panel = {
    metric: 'pass@k',
    title: 'pass@k after the last step',
    unit: 'problems',
    format: '.0%',
    domain: [0, 1],
  };
  const last = (entries: LogEntry[], k: number) => Number(entries.at(-1)![passAt(k)]);
  const points = variants.flatMap((variant, v) =>
    values.map((k) =>
      pointOf(
        variant,
        k,
        runs[v].map((entries) => last(entries, k)),
        true,
      ),
    ),
  );
  const seeds = variants.flatMap((variant, v) =>
    runs[v].flatMap((entries, seed) => values.map((k) => ({ variant, seed, x: k, value: last(entries, k) }))),
  );
  const first = (k: number) => numbers(all.map(([entry]) => (entry.step === 0 ? entry[passAt(k)] : undefined)));
  const before = (common ? values : [])
    .map((x) => ({ x, mean: mean(first(x)) }))
    .filter(({ mean }) => Number.isFinite(mean));
  const lowest = Math.min(...before.map(({ mean }) => mean), 1);
  const [low, high] = rangeOf(panel, points, seeds);
  return { panel, axis: { title: 'k', values }, points, seeds, before, range: [Math.min(low, lowest), high] };
}

/**
 * What came of runs against the value of a swept option.
 * @param lines - a name each
 * @param results - of each run, by line, value and seed
 */
export function sweepChart(
  panel: Panel,
  { lines, option, values }: { lines: string[]; option: string; values: string[] },
  results: number[][][],
): Chart {
  const points = lines.flatMap((variant, l) => values.map((x, i) => pointOf(variant, x, numbers(results[l][i]), true)));
  const seeds = lines.flatMap((variant, l) =>
    values.flatMap((x, i) => results[l][i].map((value, seed) => ({ variant, seed, x, value }))),
  );
  return { panel, axis: { title: option, values }, points, seeds, range: rangeOf(panel, points, seeds) };
}

/**
 * The mean over a variant's seeds at each step, with its interval.
 * @param shift - where between two marks the first one is, from 0 to 1: those of several variants should not coincide
 */
function curve(smooth: Map<number, number>[], variant: string, shift: number): Point[] {
  const steps = [...new Set(smooth.flatMap((values) => [...values.keys()]))].sort((a, b) => a - b);
  const every = Math.ceil(steps.length / 8);
  return steps.map((step, i) => {
    const values = numbers(smooth.map((values) => values.get(step)));
    return pointOf(variant, step, values, i % every === Math.floor(shift * every));
  });
}

/** A run's metric by step: a moving average over logged steps, unless it is an evaluation, or exact by its nature. */
function smoothed({ metric, exact }: Panel, run: LogEntry[]): Map<number, number> {
  const entries = run.filter((entry) => metric in entry);
  const half = exact || metric.startsWith('eval/') ? 0 : smoothing(entries.length);
  return new Map(
    entries.flatMap(({ step }, i): [number, number][] => {
      const near = numbers(entries.slice(Math.max(0, i - half), i + half + 1).map((entry) => entry[metric]));
      return near.length > 0 ? [[step, mean(near)]] : [];
    }),
  );
}

/** The vertical scale: all of the lines, and as much of the bands as leaves the lines legible. */
function rangeOf({ domain, zero }: Panel, points: Point[], seeds: SeedPoint[]): [number, number] {
  const values = seeds.map(({ value }) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = (high - low) / 4 || Math.abs(high) / 10 || 1;
  const bottom = Math.max(low - room, Math.min(low, ...points.map((p) => p.low ?? low)), domain?.[0] ?? -Infinity);
  const top = Math.min(high + room, Math.max(high, ...points.map((p) => p.high ?? high)), domain?.[1] ?? Infinity);
  return [zero ? 0 : bottom, top === bottom ? bottom + room : top];
}

/** The share of a panel's height from which on a band, in the mean over the steps, hides more than it shows. */
const TOO_WIDE = 1 / 3;

/** The points of the bands; none, if one of them would fill the panel. */
function bandsOf({ points, range: [bottom, top] }: Chart): Point[] {
  const bands = points.filter(({ low }) => low !== undefined);
  const variants = [...new Set(bands.map(({ variant }) => variant))];
  const heights = variants.map((name) => {
    const own = bands.filter(({ variant }) => variant === name);
    return mean(own.map(({ low, high }) => Math.min(high!, top) - Math.max(low!, bottom)));
  });
  return heights.some((height) => height > TOO_WIDE * (top - bottom)) ? [] : bands;
}

type View = Extract<TopLevelSpec, { concat: unknown }>['concat'][number];
const config = ({ ink, muted, line, grid, paper }: Palette): TopLevelSpec['config'] => ({
  aria: false, // each SVG is described as a whole
  font: 'system-ui, Helvetica, Arial, sans-serif',
  view: { stroke: null },
  point: { filled: true, size: 45, opacity: 1, stroke: paper, strokeWidth: 0.8 },
  title: { anchor: 'start', frame: 'group', fontSize: 13, fontWeight: 600, color: ink, offset: 8 },
  axis: { labelColor: muted, titleColor: muted, titleFontWeight: 'normal', titleFontSize: 11, labelFontSize: 11 },
  axisX: { grid: false, labelFlush: false, tickColor: line, domainColor: line },
  axisY: {
    gridColor: grid,
    domain: false,
    ticks: false,
    labelPadding: 6,
    tickCount: 5,
    minExtent: 34,
    labelFlush: true,
  },
});

/** The scales that give each variant its look. */
function looks(variants: string[], palette: Palette) {
  const scale = <T>(range: T[]) => ({
    field: 'variant',
    type: 'nominal' as const,
    scale: { domain: variants, range: range.slice(0, variants.length) },
    legend: null,
  });
  return {
    color: scale(palette.variants),
    strokeDash: scale(LOOKS.map(({ dash }) => dash)),
    shape: scale(LOOKS.map(({ shape }) => shape)),
  };
}

/** What places things along the horizontal axis. */
function horizontal(axis: Axis) {
  if ('values' in axis) {
    const scale = { type: 'point' as const, domain: axis.values, padding: 0.2 };
    return { field: 'x', type: 'ordinal' as const, scale, axis: { title: axis.title, labelAngle: 0 } };
  }
  return {
    field: 'x',
    type: 'quantitative' as const,
    scale: { domain: [0, axis.end], nice: false },
    axis: { title: axis.title, tickCount: 5, format: 'd', tickMinStep: 1 },
  };
}

/** What all runs had in common before the first step. */
const commonStart = (before: Chart['before'], y: object, { muted }: Palette) =>
  before?.length
    ? [
        {
          data: { values: before },
          mark: { type: 'line' as const, strokeWidth: 1.5, strokeDash: [3, 3] },
          encoding: { y, color: { value: muted } },
        },
      ]
    : [];

function view(chart: Chart, variants: string[], palette: Palette): View {
  const { panel, axis, points, seeds, range } = chart;
  const { color, strokeDash, shape } = looks(variants, palette);
  const vertical = (field: string) => ({
    field,
    type: 'quantitative' as const,
    scale: { domain: range, nice: !panel.domain, zero: false },
    axis: { title: panel.unit, ...(panel.format ? { format: panel.format } : {}) },
  });
  const cut = (name: 'low' | 'high') => `clamp(datum.${name}, ${range[0]}, ${range[1]})`;
  return {
    title: panel.title,
    width: 270,
    height: 140,
    data: { values: points },
    encoding: {
      x: horizontal(axis),
      color,
    },
    layer: [
      {
        data: { values: bandsOf(chart) },
        transform: [
          { calculate: cut('low'), as: 'low' },
          { calculate: cut('high'), as: 'high' },
        ],
        mark: { type: 'area', opacity: 0.2 },
        encoding: { y: vertical('low'), y2: { field: 'high' } },
      },
      {
        data: { values: seeds },
        mark: { type: 'line', strokeWidth: 0.8, opacity: 0.45, strokeJoin: 'round' },
        encoding: { y: vertical('value'), detail: { field: 'seed', type: 'nominal' } },
      },
      ...commonStart(chart.before, vertical('mean'), palette),
      { mark: { type: 'line', strokeWidth: 2, strokeJoin: 'round' }, encoding: { y: vertical('mean'), strokeDash } },
      { transform: [{ filter: 'datum.marked' }], mark: 'point', encoding: { y: vertical('mean'), shape } },
    ],
  };
}

/** The lines and marks of variants below each other, with or without their names. */
function legend(variants: string[], shown: string[], palette: Palette, named: boolean): View {
  const { color, strokeDash, shape } = looks(variants, palette);
  const axis = {
    orient: 'right',
    title: null,
    domain: false,
    labelLimit: 0,
    labelColor: palette.ink,
    grid: false,
  } as const;
  return {
    width: 48,
    height: 18 * shown.length,
    data: { values: shown.map((variant) => ({ variant })) },
    encoding: { y: { field: 'variant', type: 'nominal', sort: shown, axis: named ? axis : null }, color },
    layer: [
      {
        mark: { type: 'rule', strokeWidth: 2, strokeCap: 'butt' },
        encoding: { x: { value: 0 }, x2: { value: 48 }, strokeDash },
      },
      { mark: 'point', encoding: { x: { value: 24 }, shape } },
    ],
  };
}

/** All panels on one white sheet. */
const sheet = (charts: Chart[], variants: string[]): TopLevelSpec => ({
  background: ON_PAPER.paper,
  padding: 12,
  config: config(ON_PAPER),
  vconcat: [
    legend(variants, variants, ON_PAPER, true),
    {
      columns: 2,
      spacing: { row: 76, column: 76 },
      bounds: 'flush',
      concat: charts.map((chart) => view(chart, variants, ON_PAPER)),
    },
  ],
});

/** The colours of the SVGs for report.html, light or dark as the reader's screen prefers. */
const variables = (colours: typeof LIGHT, of: (look: (typeof LOOKS)[number]) => string) => ({
  ...colours,
  ...Object.fromEntries(LOOKS.map((look, v) => [`variant-${v}`, of(look)])),
});
export const COLOURS = colourVariables(
  variables(LIGHT, ({ light }) => light),
  variables(DARK, ({ dark }) => dark),
);

/** SVGs for a page with {@link COLOURS} in its style sheet: a label each, and a piece of each variant's line. */
export async function drawPanels(
  variants: string[],
  charts: Chart[],
): Promise<{ panels: { label: string; svg: string }[]; keys: string[] }> {
  const drawAlone = async (label: string, chart: View, size = {}) => {
    const alone = { ...chart, ...size, background: null, padding: 2, config: config(ON_SCREEN) };
    const svg = await draw(alone as unknown as TopLevelSpec);
    return svg.replace('<svg ', `<svg role="img" aria-label="${label}" `);
  };
  // Titles and labels included, so that a page scales all of them alike.
  const size = { width: 340, height: 215, autosize: { type: 'fit', contains: 'padding' } };
  const labelOf = ({ panel: { title, unit }, axis }: Chart) => `${title} (${unit}) against ${axis.title}`;
  const drawPanel = async (chart: Chart) => {
    const label = labelOf(chart);
    return { label, svg: await drawAlone(label, view(chart, variants, ON_SCREEN), size) };
  };
  return {
    panels: await Promise.all(charts.map(drawPanel)),
    keys: await Promise.all(
      variants.map((variant, v) => drawAlone(`line ${v + 1}`, legend(variants, [variant], ON_SCREEN, false))),
    ),
  };
}

/**
 * Draws charts of the same variants.
 * @returns SVGs: `sheet`, all in one on white, for any page; `panels` and `keys` as {@link drawPanels} draws them
 */
export async function drawCharts(
  variants: string[],
  charts: Chart[],
): Promise<{ sheet: string; panels: string[]; keys: string[] }> {
  const { panels, keys } = await drawPanels(variants, charts);
  return { sheet: await draw(sheet(charts, variants)), panels: panels.map(({ svg }) => svg), keys };
}
