import type { TopLevelSpec } from 'vega-lite';
import type { LogEntry } from './metrics.ts';

/** A small chart of one metric against the step. */
export type Panel = {
  metric: string;
  title: string;
  /** title of the vertical axis: the unit */
  unit: string;
  /** number format of d3 */
  format?: string;
  /** fixed range of the vertical axis */
  domain?: [number, number];
  /** whether the vertical axis begins at zero */
  zero?: boolean;
  /** not noisy: never to be averaged */
  exact?: boolean;
};

/** Every metric that has a panel, in the order of the panels. */
export const PANELS: Panel[] = [
  { metric: 'reward', title: 'Reward', unit: 'batch mean' },
  { metric: 'eval/accuracy', title: 'Held-out accuracy', unit: 'correct', format: '.0%', domain: [0, 1] },
  { metric: 'eval/disparity_ratio', title: 'Held-out disparity ratio', unit: 'largest / smallest mean' },
  { metric: 'eval/appropriateness', title: 'Held-out appropriateness', unit: '1: within the range' },
  { metric: 'tools/call_frequency', title: 'Tool calls', unit: 'per conversation', zero: true },
  {
    metric: 'tools/failure_frequency',
    title: 'Failed tool calls',
    unit: 'of all calls',
    format: '.0%',
    domain: [0, 1],
  },
  { metric: 'tools/recall', title: 'Supporting passages found', unit: 'of all', format: '.0%', domain: [0, 1] },
  { metric: 'completions/mean_length', title: 'Completion length', unit: 'tokens' },
  { metric: 'entropy', title: 'Entropy of the policy', unit: 'nats / token', zero: true },
  { metric: 'kl', title: 'KL to the reference', unit: 'nats / token', zero: true },
  {
    metric: 'frac_reward_zero_std',
    title: 'Groups with equal rewards',
    unit: 'of all groups',
    format: '.0%',
    domain: [0, 1],
  },
  { metric: 'grad_norm', title: 'Gradient norm', unit: 'L2 norm', zero: true },
  { metric: 'learning_rate', title: 'Learning rate', unit: 'per update', format: '.1~e', zero: true, exact: true },
];

const COLUMNS = 2;
/** Pixels: the width of a panel, and the gaps between panels, without their labels. */
const [WIDTH, GAP] = [340, { row: 72, column: 76 }];
/** From this many points on, a curve is drawn pale below its moving average. */
const SMOOTH_FROM = 40;

/** How many points on either side the moving average of a curve takes in; 0 for a curve too short to need one. */
export const smoothing = (points: number): number => (points >= SMOOTH_FROM ? Math.round(points / 40) : 0);

/**
 * Draws the metrics of a run as small charts over the same steps. Metrics that do not occur have no chart.
 * @param entries - one entry a step, as `readMetrics` gives them
 * @returns an SVG document
 */
export async function curves(entries: LogEntry[]): Promise<string> {
  return draw(specification(entries));
}

/** How charts look: what a specification in the language of Vega-Lite begins with. */
export const STYLE = {
  $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
  background: 'white',
  padding: 12,
  config: {
    font: 'Helvetica, Arial, sans-serif',
    view: { stroke: null },
    title: { anchor: 'start', frame: 'group', fontSize: 13, fontWeight: 600, color: '#24292f', offset: 8 },
    axis: {
      labelColor: '#57606a',
      titleColor: '#57606a',
      titleFontWeight: 'normal',
      titleFontSize: 11,
      labelFontSize: 10,
    },
    legend: { labelLimit: 0 }, // names are not cut short
    axisX: { grid: false, tickColor: '#d0d7de', domainColor: '#d0d7de' },
    axisY: { gridColor: '#eaeef2', domain: false, ticks: false, labelPadding: 6, tickCount: 5, labelFlush: true },
  },
} satisfies Partial<TopLevelSpec>;

/** Draws a chart that is written in the language of Vega-Lite, as an SVG document. */
export async function draw(specification: TopLevelSpec): Promise<string> {
  // Loaded here and not at the top: it takes longer than the start of a script should.
  const [{ compile }, { parse, View }] = await Promise.all([import('vega-lite'), import('vega')]);
  return new View(parse(compile(specification).spec), { renderer: 'none' }).toSVG();
}

/** The charts in the language of Vega-Lite. */
function specification(entries: LogEntry[]): TopLevelSpec {
  const charts = PANELS.map((panel) => ({ panel, points: points(entries, panel.metric) })).filter(
    (c) => c.points.length > 0,
  );
  const steps: [number, number] = [
    Math.min(0, ...entries.map((entry) => entry.step)),
    Math.max(1, ...entries.map((entry) => entry.step)),
  ];
  const drawn = charts.map(({ panel, points }, i) => {
    // With an odd number the first one takes a whole row, so that none is left alone at the bottom.
    const width = i === 0 && charts.length % COLUMNS === 1 ? COLUMNS * (WIDTH + GAP.column) - GAP.column : WIDTH;
    return chart(panel, points, { steps, width, bottom: i >= charts.length - COLUMNS });
  });
  const wide = drawn.length % COLUMNS;
  const grid = { columns: COLUMNS, spacing: GAP, bounds: 'flush', concat: drawn.slice(wide) } as const;
  const sheet: Chart[] = [...drawn.slice(0, wide), ...(drawn.length > wide ? [grid] : [])];
  return { ...STYLE, spacing: GAP.row, bounds: 'flush', vconcat: sheet };
}

type Chart = Extract<TopLevelSpec, { concat: unknown }>['concat'][number];
type Point = { step: number; value: number };

function points(entries: LogEntry[], metric: string): Point[] {
  return entries.flatMap(({ step, [metric]: value }) => (typeof value === 'number' ? [{ step, value }] : []));
}

function chart(
  { title, unit, format, domain, zero = false, exact }: Panel,
  values: Point[],
  { steps, width, bottom }: { steps: [number, number]; width: number; bottom: boolean },
): Chart {
  const color = '#0969da';
  const half = exact ? 0 : smoothing(values.length);
  const smooth = half > 0;
  const line = { type: 'line', color, strokeWidth: 2, strokeJoin: 'round' } as const;
  return {
    title,
    width,
    height: 130,
    data: { values },
    transform: [{ window: [{ op: 'mean', field: 'value', as: 'average' }], frame: [-half, half] }],
    encoding: {
      x: {
        field: 'step',
        type: 'quantitative',
        scale: { domain: steps, nice: false },
        axis: { title: bottom ? 'step' : null, tickCount: 6, format: 'd', tickMinStep: 1 },
      },
    },
    layer: [
      {
        mark: smooth
          ? { ...line, strokeWidth: 1, opacity: 0.3 }
          : { ...line, point: exact ? false : { color, size: 24 } },
        encoding: { y: vertical('value') },
      },
      ...(smooth ? [{ mark: line, encoding: { y: vertical('average') } }] : []),
    ],
  };

  function vertical(field: string) {
    return {
      field,
      type: 'quantitative',
      scale: { zero, ...(domain ? { domain } : { nice: true }) },
      axis: { title: unit, ...(format ? { format } : {}) },
    } as const;
  }
}
