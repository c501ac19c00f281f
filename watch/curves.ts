/** The curves of several runs in the same panels: runs that differ in their seed alone are seeds of one kind. */
import { smoothing } from '../lib/run/curves.ts';
import type { LogEntry } from '../lib/run/metrics.ts';
import { mean } from '../lib/statistics.ts';
import { counted } from '../lib/text.ts';
import { ALL_PANELS, COLOURS, drawPanels, FEWEST_SEEDS, MOST_VARIANTS, stepCharts } from '../tools/compare_curves.ts';
import type { ToldCurves, ToldRun } from './told.ts';

/** Points of a curve, at most: a panel has fewer pixels across. */
const POINTS = 300;

type Drawn = { told: ToldRun; entries: LogEntry[] };

/** Draws all metrics that occur. */
export async function drawRuns(runs: Drawn[]): Promise<ToldCurves> {
  const drawn = runs.filter(({ entries }) => entries.length > 0);
  const names = new Map<string, LogEntry[][]>();
  for (const { told, entries } of drawn) {
    const name = kindOf(told, runs);
    names.set(name, [...(names.get(name) ?? []), entries]);
  }
  const kinds = [...names].slice(0, MOST_VARIANTS);
  if (kinds.length === 0) return { panels: [], legend: [], note: 'Nothing is logged yet' };
  const last = Math.max(...drawn.map(({ entries }) => entries.at(-1)!.step));
  const width = Math.max(1, Math.ceil(last / POINTS));
  const variants = kinds.map(([name]) => name);
  const shown = kinds.map(([, seeds]) => seeds.map((entries) => thinned(entries, width)));
  const charts = stepCharts(variants, shown, ALL_PANELS);
  const near = 1 + 2 * smoothing(Math.max(...shown.flat().map(({ length }) => length)));
  const { panels, keys } = await drawPanels(variants, charts);
  const several = kinds.length > 1;
  const seeds = Math.max(...kinds.map(([, ofKind]) => ofKind.length));
  const notes = [
    ...(seeds > 1 ? [`thick: mean over ${counted(seeds, 'run')}, thin: each`] : []),
    ...(seeds >= FEWEST_SEEDS ? ['band: 95 % interval of the mean'] : []),
    ...(width > 1 ? [`each point is the mean of ${width} steps`] : []),
    ...(near > 1 ? [`lines are moving averages over ${near} points, but for evaluations and the learning rate`] : []),
    ...(names.size > MOST_VARIANTS ? [`the first ${MOST_VARIANTS} of ${names.size} kinds of runs`] : []),
  ];
  return {
    panels: panels.map(({ label, svg }) => ({ label, svg: coloured(svg) })),
    legend: several ? variants.map((name, v) => ({ name, svg: coloured(keys[v]) })) : [],
    note: notes.join('; '),
  };
}

/** As an image an SVG sees no style sheet of the page's. */
const coloured = (svg: string): string => svg.replace(/<svg [^>]*>/, (tag) => `${tag}<style>${COLOURS}</style>`);

/** What a run is called beside the others: its experiment, model and options, as far as these differ. */
function kindOf({ experiment, model, options }: ToldRun, runs: Drawn[]): string {
  const text = (options: ToldRun['options']) => options.list.map((pair) => pair.join(' '));
  const isCommon = (option: string) => runs.every(({ told }) => text(told.options).includes(option));
  const own = text(options).filter((option) => !/^--(seed|model-name) /.test(option) && !isCommon(option));
  const models = new Set(runs.map(({ told }) => told.model));
  return [experiment.replace('experiment_', ''), ...(models.size > 1 ? [model] : []), ...own].join(' ');
}

/** Entries of every `width` steps as one, their means, at the last of these steps. What is before the first step stays. */
export function thinned(entries: LogEntry[], width: number): LogEntry[] {
  if (width === 1) return entries;
  const parts = new Map<number, LogEntry[]>();
  for (const entry of entries) {
    const end = Math.ceil(entry.step / width) * width;
    const part = parts.get(end);
    if (part) part.push(entry);
    else parts.set(end, [entry]);
  }
  const last = entries.at(-1)?.step ?? 0;
  return [...parts].map(([end, part]) => {
    const names = new Set(part.flatMap((entry) => Object.keys(entry)));
    const means = [...names].flatMap((name): [string, number][] => {
      const values = part.map((entry) => entry[name]).filter((value) => Number.isFinite(value)) as number[];
      return values.length > 0 ? [[name, mean(values)]] : [];
    });
    return { ...Object.fromEntries(means), step: Math.min(end, last) };
  });
}
