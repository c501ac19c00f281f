/** What a comparison has found so far: curves, tables and completions of its finished runs, in report.md and report.html. */
import { existsSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { join } from 'node:path';
import { threadLimits } from '../lib/backend/threads.ts';
import { readJsonLines } from '../lib/environments/json_lines.ts';
import { writeFileAtomically } from '../lib/folders.ts';
import { isObject, readJsonObject } from '../lib/json.ts';
import { smoothing } from '../lib/run/curves.ts';
import { type Block, escapeText, toHtml, toMarkdown } from '../lib/run/document.ts';
import { type LogEntry, readEntries, readMetrics } from '../lib/run/metrics.ts';
import { NOTICES } from '../lib/run/run_folder.ts';
import { mean } from '../lib/statistics.ts';
import { quoted } from '../lib/text.ts';
import {
  COLOURS,
  drawCharts,
  FEWEST_SEEDS,
  intervalOfSeeds,
  ksOf,
  numbers,
  passAtKChart,
  stepCharts,
  sweepChart,
} from './compare_curves.ts';
import { linesOf, type Sweep } from './compare_sweep.ts';

/** What is compared, and how. `folder` holds the runs and the report. */
export type Comparison = {
  folder: string;
  /** names of experiments, with options; the first is what the others are compared with */
  experiments: string[];
  /** options that each of them has with several values */
  sweeps: Sweep[];
  /** the experiments, where nothing is swept; else each with all that is swept */
  variants: string[];
  seeds: number[];
  maxSteps: number;
  /** runs side by side */
  jobs: number;
  /** options of all runs */
  runOptions: string[];
};

/** A finished run: its options, one entry a logged step, the first group of each, what it noticed, and its seconds. */
export type FinishedRun = {
  options: Record<string, unknown>;
  entries: LogEntry[];
  samples: Sample[];
  notices: LogEntry[];
  seconds: number;
};
type Sample = { step: number; question: string; answer: string; completion: string; tokens: number; reward: number };

/** Seeds that all variants have finished, and their runs, by variant and seed. */
type Finished = { seeds: number[]; runs: FinishedRun[][] };

/** Where the run of a variant with a seed is. Different variants have different folders, whatever their options hold. */
export const runFolder = (folder: string, variant: string, seed: number): string =>
  join(folder, encodeURIComponent(variant).replaceAll('%20', '+'), `seed-${seed}`);

/** Reads a run; undefined if it has not been finished. */
export async function readRun(folder: string, maxSteps: number): Promise<FinishedRun | undefined> {
  const entries = readMetrics(join(folder, 'metrics.jsonl'));
  if (!existsSync(join(folder, 'final_model')) || (entries.at(-1)?.step ?? -1) < maxSteps) return undefined;
  const { options } = (await readJsonObject(join(folder, 'config.json'))) as Pick<FinishedRun, 'options'>;
  const state = await readJsonObject(join(folder, `checkpoint-${maxSteps}`, 'training_state.json'));
  const samples = readJsonLines(join(folder, 'completions.jsonl'), (line) => line as Sample);
  const counters = isObject(state?.counters) ? state.counters : state; // runs of earlier versions have them at the top
  const notices = readEntries(join(folder, NOTICES));
  return { options, entries, samples, notices, seconds: Number(counters?.seconds ?? Number.NaN) };
}

/**
 * Writes report.md, report.html and curves.svg, about the seeds that all variants have finished; nothing without any.
 */
export async function writeReport(comparison: Comparison): Promise<void> {
  const { folder, variants, maxSteps } = comparison;
  const read = (seed: number) =>
    Promise.all(variants.map((variant) => readRun(runFolder(folder, variant, seed), maxSteps)));
  const bySeed = await Promise.all(comparison.seeds.map(async (seed) => ({ seed, runs: await read(seed) })));
  const finished = bySeed.filter(({ runs }) => !runs.includes(undefined)) as { seed: number; runs: FinishedRun[] }[];
  if (finished.length === 0) return;
  const runs = variants.map((_, v) => finished.map((seed) => seed.runs[v]));
  const { names, charts } = chartsOf(comparison, runs);
  const { sheet, panels, keys } = await drawCharts(names, charts);
  const blocks = describe(comparison, { seeds: finished.map(({ seed }) => seed), runs });
  const legend = names.map((name, i) => `<span>${keys[i]}${escapeText(name)}</span>`).join('\n');
  const curves = `<div class="legend">${legend}</div>\n<div class="panels">\n${panels.join('\n')}\n</div>`;
  writeFileAtomically(join(folder, 'curves.svg'), sheet);
  const parts = { curves: { markdown: '![Curves of all variants](curves.svg)', html: curves } };
  writeFileAtomically(join(folder, 'report.md'), toMarkdown(blocks, parts));
  writeFileAtomically(join(folder, 'report.html'), toHtml(blocks, parts, { title: 'Comparison', style: STYLE }));
}

/** The charts, and the names of their lines. */
function chartsOf(comparison: Comparison, runs: FinishedRun[][]) {
  const { variants, sweeps } = comparison;
  if (sweeps.length === 0) {
    const entries = runs.map((ofVariant) => ofVariant.map((run) => run.entries));
    const models = new Set(runs.flat().map(({ options }) => options.modelName));
    const passed = passAtKChart(variants, entries, { common: models.size === 1 });
    return { names: variants, charts: [...stepCharts(variants, entries), ...(passed ? [passed] : [])] };
  }
  const [{ option, values }] = sweeps;
  const lines = linesOf(comparison.experiments, sweeps).map(({ name }) => name);
  const charts = sweepTables(comparison, runs).map(({ name, cells }) => {
    const panel = { metric: name, title: capital(name.replace(/, %.*$/, '')), unit: '%' };
    return sweepChart(panel, { lines, option, values }, cells);
  });
  return { names: lines, charts: charts.filter(({ points }) => points.some(({ mean }) => Number.isFinite(mean))) };
}

const capital = (text: string) => text[0].toUpperCase() + text.slice(1);

/** Two results of a sweep, by line, value of the first option, and seed. */
function sweepTables({ experiments, sweeps, variants, maxSteps }: Comparison, runs: FinishedRun[][]) {
  const chosen = ['right samples in training, %\u00a0*', 'held-out accuracy, greedy, %'];
  return chosen.map((name) => {
    const { of } = quantities(maxSteps).find((quantity) => quantity.name === name)!;
    const cells = linesOf(experiments, sweeps).map((line) =>
      line.variants.map((variant) => runs[variants.indexOf(variant)].map(of)),
    );
    return { name, cells };
  });
}

// ─── Numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A line of the tables. `of` gives NaN where a run does not have it. */
type Quantity = { name: string; digits: number; of: (run: FinishedRun) => number };

/** @param most - the largest k of pass@k */
function quantities(maxSteps: number, most = 64): Quantity[] {
  const final = (metric: string, run: FinishedRun) => 100 * Number(run.entries.at(-1)![metric] ?? Number.NaN);
  const late = (metric: string, { entries }: FinishedRun) => {
    return mean(numbers(entries.filter(({ step }) => step > 0.9 * maxSteps).map((entry) => entry[metric])));
  };
  const speed = ({ entries }: FinishedRun) => {
    const sorted = numbers(entries.map((entry) => entry.tokens_per_second)).sort((a, b) => a - b);
    return mean([sorted[(sorted.length - 1) >> 1], sorted[sorted.length >> 1]]);
  };
  return [
    { name: 'held-out accuracy, greedy, %', digits: 1, of: (run) => final('eval/accuracy', run) },
    { name: 'held-out disparity ratio, greedy', digits: 3, of: (run) => final('eval/disparity_ratio', run) / 100 },
    {
      name: 'held-out disparity ratio, sampled',
      digits: 3,
      of: (run) => final('eval/sampled_disparity_ratio', run) / 100,
    },
    { name: 'appropriateness, from 0 to 1', digits: 3, of: (run) => final('eval/appropriateness', run) / 100 },
    { name: 'twins that all get the same, %', digits: 1, of: (run) => final('eval/same_for_twins', run) },
    { name: 'held-out accuracy, sampled, %', digits: 1, of: (run) => final('eval/sampled_accuracy', run) },
    ...[8, most].map((k) => ({
      name: `held-out pass@${k}, %`,
      digits: 1,
      of: (run: FinishedRun) => final(`eval/pass_at_${k}`, run),
    })),
    { name: 'answers in the right format, greedy, %', digits: 1, of: (run) => final('eval/format', run) },
    { name: 'right ones among these, %', digits: 1, of: (run) => final('eval/ability', run) },
    {
      name: 'right samples in training, %\u00a0*',
      digits: 1,
      of: (run) => 100 * late('rewards/accuracy/mean', run),
    },
    {
      name: 'length of right answers, tokens\u00a0*',
      digits: 1,
      of: (run) => late('completions/mean_right_length', run),
    },
    {
      name: 'length of wrong answers, tokens\u00a0*',
      digits: 1,
      of: (run) => late('completions/mean_wrong_length', run),
    },
    {
      name: 'wrong minus right answers, tokens, mean over all steps',
      digits: 1,
      of: ({ entries }) => {
        const both = ['wrong', 'right'].map((kind) => `completions/mean_${kind}_length`);
        const pairs = entries
          .map((entry) => numbers(both.map((metric) => entry[metric])))
          .filter(({ length }) => length === 2);
        return mean(pairs.map(([wrong, right]) => wrong - right));
      },
    },
    { name: 'tool calls a conversation\u00a0*', digits: 2, of: (run) => late('tools/call_frequency', run) },
    {
      name: 'failed tool calls, %\u00a0*',
      digits: 1,
      of: (run) => 100 * late('tools/failure_frequency', run),
    },
    { name: 'staleness, steps\u00a0*', digits: 2, of: (run) => late('staleness/mean', run) },
    {
      name: 'effective sample size, % of the tokens\u00a0*',
      digits: 1,
      of: (run) => 100 * late('importance/ess', run),
    },
    { name: 'importance weights cut, %\u00a0*', digits: 2, of: (run) => 100 * late('importance/clipped_ratio', run) },
    { name: 'entropy, nats / token\u00a0*', digits: 3, of: (run) => late('entropy', run) },
    { name: 'training time, minutes', digits: 2, of: ({ seconds }) => seconds / 60 },
    { name: 'tokens/s, median over steps', digits: 0, of: speed },
  ];
}

/** `12.3 ± 0.4`; with its number of values where that is not the expected one. */
function show(
  values: number[],
  { digits, seeds, signed }: { digits: number; seeds: number; signed?: boolean },
): string {
  const found = numbers(values);
  if (found.length === 0) return '–';
  const { mean, half, n } = intervalOfSeeds(found);
  const number = Math.abs(mean).toFixed(digits);
  const sign = Number(number) === 0 ? '' : mean < 0 ? '−' : signed ? '+' : '';
  const text = `${sign}${number}${half === undefined ? '' : ` ± ${half.toFixed(digits)}`}${n < seeds ? ` (n = ${n})` : ''}`;
  return signed && half !== undefined && Math.abs(mean) > half ? `<b>${text}</b>` : text;
}

// ─── Text ────────────────────────────────────────────────────────────────────────────────────────────────────────────

function describe(comparison: Comparison, finished: Finished): Block[] {
  const { seeds } = finished;
  const variants = comparison.variants.map(escapeText);
  const missing = comparison.seeds.length - seeds.length;
  const isSure = seeds.length >= FEWEST_SEEDS;
  const [heading, sentence, ...found] =
    comparison.sweeps.length > 0 ? describeSweep(comparison, finished) : describeComparison(comparison, finished);
  return [
    heading,
    sentence,
    {
      text: `${variants.length} variants, ${comparison.maxSteps} steps, ${seeds.length > 1 ? 'seeds' : 'seed'} ${seeds.join(', ')}${missing > 0 ? ` (${missing} of ${comparison.seeds.length} seeds are not complete yet)` : ''}.`,
    },
    ...(isSure
      ? []
      : [
          {
            text: `With fewer than ${FEWEST_SEEDS} seeds there is no interval: they cannot tell a difference from chance.`,
          },
        ]),
    ...found,
    { heading: 'What the runs noticed' },
    ...noticesOf(variants, finished),
    { heading: 'How this was made' },
    { text: `<code>${escapeText(commandOf(comparison))}</code>` },
    { text: `Timings depend on: ${environment(comparison.jobs).map(escapeText).join('; ')}.` },
  ];
}

/** What lines and bands of the charts are. */
const linesAndBands = ({ seeds }: Finished): string =>
  [
    seeds.length > 1 ? 'Thick lines: mean over seeds. Thin lines: the seeds.' : 'Lines: one seed.',
    ...(seeds.length >= FEWEST_SEEDS
      ? ['Bands: 95 % interval of the mean (Student’s t), where none fills the panel.']
      : []),
  ].join(' ');

/** Variants side by side: curves, results, and differences to the first of them. */
function describeComparison(comparison: Comparison, finished: Finished): Block[] {
  const { seeds, runs } = finished;
  const [first, ...others] = comparison.variants.map(escapeText);
  const half = smoothing(runs[0][0].entries.filter((entry) => 'reward' in entry).length);
  const isSure = seeds.length >= FEWEST_SEEDS;
  const most = Math.max(...runs.flat().flatMap(({ entries }) => ksOf(entries)));
  const rows = quantities(comparison.maxSteps, most > 8 ? most : undefined).filter(({ of }) =>
    runs.flat().some((run) => Number.isFinite(of(run))),
  );
  const results = rows.map(({ name, digits, of }) => [
    name,
    ...runs.map((ofVariant) => show(ofVariant.map(of), { digits, seeds: seeds.length })),
  ]);
  const differences = rows.map(({ name, digits, of }) => [
    name,
    ...runs.slice(1).map((ofVariant) => {
      const pairs = ofVariant.map((run, s) => of(run) - of(runs[0][s]));
      return show(pairs, { digits, seeds: seeds.length, signed: true });
    }),
  ]);
  const averaged = isSure
    ? 'Mean over seeds ± 95 % interval (Student’s t). '
    : seeds.length > 1
      ? 'Mean over seeds. '
      : '';
  return [
    { heading: `Comparison: ${[first, ...others].join(', ')}` },
    { text: `<b>${verdict([first, ...others], runs)}</b>` },
    { heading: 'Curves' },
    { figure: 'curves' },
    {
      text: [
        linesAndBands(finished),
        half > 0
          ? `Metrics of batches are smoothed in each run first, by a moving average over ${2 * half + 1} logged steps; evaluations are not.`
          : 'Nothing is smoothed.',
        'A step at which some seeds have no right, or no wrong, answers shows the mean of the others. Right and wrong answers share one vertical scale.',
        'The dotted grey line of pass@k, where there is one, is that of all before the first step.',
      ].join(' '),
    },
    { heading: 'Results' },
    { table: [['', first, ...others], ...results] },
    { text: `${averaged}* mean over the last 10 % of the steps. Accuracies are those of the last step.` },
    ...(others.length === 0
      ? []
      : [
          { heading: `Differences to ${first}` },
          { table: [['', ...others], ...differences] },
          {
            text: isSure
              ? 'Each seed is compared with itself: mean of the differences ± 95 % interval. Where the interval contains 0, these seeds cannot tell whether there is a difference. Where it does not, the line is bold; by chance alone that happens to 1 line in 20.'
              : 'Each seed is compared with itself.',
          },
          { heading: 'Options that differ' },
          ...differingOptions([first, ...others], runs),
        ]),
    { heading: `Completions, seed ${seeds[0]}` },
    ...completions([first, ...others], runs),
  ];
}

/** What came of each value of a swept option. */
function describeSweep(comparison: Comparison, finished: Finished): Block[] {
  const { experiments, sweeps } = comparison;
  const names = linesOf(experiments, sweeps).map(({ name }) => escapeText(name));
  const values = sweeps[0].values.map(escapeText);
  const tables = sweepTables(comparison, finished.runs);
  const bests = tables[0].cells.map((ofLine) => {
    const means = ofLine.map((ofValue) => mean(numbers(ofValue)));
    return means.indexOf(Math.max(...means.filter(Number.isFinite)));
  });
  const best = names.map((name, l) => `${name} with ${values[bests[l]]}`);
  const blocks = tables.flatMap(({ name, cells }, t): Block[] => {
    const rows = cells.map((ofLine, l) => {
      const texts = ofLine.map((ofValue) => show(ofValue, { digits: 1, seeds: ofValue.length }));
      return [names[l], ...texts.map((text, i) => (t === 0 && i === bests[l] ? `<b>${text}</b>` : text))];
    });
    return [{ heading: capital(name) }, { table: [['', ...values], ...rows] }];
  });
  return [
    { heading: `Sweep of ${sweeps.map(({ option }) => option).join(', ')}: ${experiments.map(escapeText).join(', ')}` },
    { text: `<b>Most right samples in training: ${best.join('; ')}.</b>` },
    { heading: 'Curves' },
    { figure: 'curves' },
    { text: linesAndBands(finished) },
    ...blocks,
    {
      text: `Columns: --${sweeps[0].option}. Bold: the best of its line, chosen by what is trained on, so that the held-out problems have no part in it. * mean over the last 10 % of the steps.`,
    },
  ];
}

/** The sentences of runs that have noticed something. */
function noticesOf(variants: string[], { seeds, runs }: Finished): Block[] {
  const rows = runs.flatMap((ofVariant, v) =>
    ofVariant.flatMap(({ notices }, s) =>
      notices.map(({ step, text }) => [variants[v], String(seeds[s]), String(step), escapeText(String(text))]),
    ),
  );
  return rows.length > 0 ? [{ table: [['', 'seed', 'step', ''], ...rows] }] : [{ text: 'Nothing.' }];
}

/** What the comparison has shown, in a sentence: of the greedy accuracy on held-out questions. */
function verdict([first, ...others]: string[], runs: FinishedRun[][]): string {
  const accuracies = runs.map((ofVariant) =>
    ofVariant.map(({ entries }) => 100 * Number(entries.at(-1)!['eval/accuracy'])),
  );
  if (!accuracies.flat().every(Number.isFinite)) return 'No held-out questions were asked of all: see the tables.';
  const seeds = `${runs[0].length} ${runs[0].length === 1 ? 'seed' : 'seeds'}`;
  const clauses = others.map((other, i) => {
    const { mean, half } = intervalOfSeeds(accuracies[i + 1].map((accuracy, s) => accuracy - accuracies[0][s]));
    const size = `${Math.abs(mean).toFixed(1)}${half === undefined ? '' : ` ± ${half.toFixed(1)}`} points`;
    if (half === undefined && Math.abs(mean) < 0.05) return `${other} equals ${first}`;
    const difference = `${size} ${mean < 0 ? 'below' : 'above'} ${first}`;
    if (half === undefined) return `${other} is ${difference}, which may be chance`;
    if (Math.abs(mean) > half) return `${other} is ${difference}, more than chance explains`;
    return `${other} cannot be told from ${first} (${difference})`;
  });
  const alone = `${first} reaches ${show(accuracies[0], { digits: 1, seeds: runs[0].length })} %`;
  return `Held-out accuracy, ${seeds}: ${clauses.join('; ') || alone}.`;
}

function differingOptions(variants: string[], runs: FinishedRun[][]): Block[] {
  const options = runs.map(([run]) => run.options);
  const value = (all: Record<string, unknown>, key: string) => (key in all ? escapeText(String(all[key])) : '–');
  const keys = [...new Set(options.flatMap(Object.keys))].filter(
    (key) =>
      !['seed', 'outputDir', 'resume', 'config'].includes(key) &&
      new Set(options.map((all) => value(all, key))).size > 1,
  );
  if (keys.length === 0) return [{ text: 'None.' }];
  const table = [['', ...variants], ...keys.map((key) => [key, ...options.map((all) => value(all, key))])];
  return [{ table }, { text: '–: not given, or unknown to that experiment.' }];
}

/** The command that starts the same comparison, for a shell. */
function commandOf({ experiments, sweeps, seeds, maxSteps, jobs, runOptions }: Comparison): string {
  const swept = sweeps.flatMap(({ option, values }) => ['--sweep', `${option}=${values}`]);
  const options = [
    '--experiments',
    experiments,
    ...swept,
    '--seeds',
    seeds,
    '--max-steps',
    maxSteps,
    '--jobs',
    jobs,
  ].map(String);
  const rest = runOptions.length > 0 ? ['--', ...runOptions] : [];
  return `npm run compare -- ${[...options, ...rest].map(quoted).join(' ')}`;
}

/** What the speed of the runs depends on. */
function environment(jobs: number): string[] {
  const threads = Object.entries({ ...process.env, ...threadLimits(jobs) }).filter(([name]) =>
    name.endsWith('_THREADS'),
  );
  return [
    `Node ${process.versions.node}`,
    `${cpus()[0]?.model ?? 'unknown CPU'}`,
    `${availableParallelism()} cores`,
    `${jobs} ${jobs === 1 ? 'run' : 'runs'} at a time`,
    ...threads.map(([name, value]) => `${name}=${value}`),
  ];
}

/** Three completions of the first seed at the first and the last logged step, variant by variant. */
function completions(variants: string[], runs: FinishedRun[][]): Block[] {
  const samples = runs.map(([run]) => run.samples);
  return [...new Set([samples[0][0].step, samples[0].at(-1)!.step])].flatMap((step): Block[] => {
    const groups = samples.map((all) => all.filter((sample) => sample.step === step).slice(0, 3));
    const asked = groups.map(([sample]) =>
      sample ? `${escapeText(sample.question)} (answer: ${escapeText(String(sample.answer))})` : '–',
    );
    const same = asked.every((question) => question === asked[0]);
    const cell = (sample?: Sample) =>
      sample ? `<b>reward ${sample.reward}, ${sample.tokens} tokens</b><br>${escapeText(sample.completion)}` : '–';
    return [
      { text: `Step ${step}${same ? `: ${asked[0]}` : ', where variants were asked different questions'}` },
      { table: [variants, ...(same ? [] : [asked]), ...[0, 1, 2].map((i) => groups.map((group) => cell(group[i])))] },
    ];
  });
}

// ─── report.html ─────────────────────────────────────────────────────────────────────────────────────────────────────

/** Of the charts, beside that of every document. */
const STYLE = `
${COLOURS}
.legend { position: sticky; top: 0; display: flex; flex-wrap: wrap; gap: 0 20px; padding: 6px 0 10px; background: var(--paper); }
.legend span { display: inline-flex; align-items: center; gap: 8px; }
.legend svg { flex: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 18px; }
.panels svg { width: 100%; height: auto; }
`;
