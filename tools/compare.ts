/**
 * Trains variants of GRPO side by side, each with several seeds, and reports how they differ.
 *
 *   npm run compare -- --experiments base,drgrpo --seeds 0,1,2 --max-steps 200 --jobs 2
 *   npm run compare -- --experiments "drgrpo,drgrpo --critic-type grpo" -- --learning-rate 1e-4
 *   npm run compare -- --experiments base,drgrpo --sweep learning-rate=1e-4,2e-4,4e-4
 *   npm run compare -- --resume runs/compare-<time>
 *
 * A variant is the name of an experiment, with options of its own if it needs any; what follows a lone `--` goes to every
 * run. A sweep gives each of them every value of an option. All variants of the first seed come first, then those of the
 * next; the report is written anew after each seed.
 * After Ctrl-C, kill -9 or a failure, `--resume` keeps finished runs, and continues others from their last checkpoint.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { Command, InvalidArgumentError, Option } from '@commander-js/extra-typings';
import type * as Experiment from '../experiment_base/train.ts';
import { threadLimits } from '../lib/backend/threads.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { appendToFile, writeFileAtomically } from '../lib/folders.ts';
import { checkCompletions } from '../lib/run/estimate.ts';
import { onInterrupt } from '../lib/run/interrupt.ts';
import { lockFolder } from '../lib/run/lock.ts';
import { readMetrics } from '../lib/run/metrics.ts';
import { progress } from '../lib/run/progress.ts';
import { newFolder, timestamp } from '../lib/run/run_folder.ts';
import { quoted } from '../lib/text.ts';
import { MOST_VARIANTS } from './compare_curves.ts';
import { type Comparison, readRun, runFolder, writeReport } from './compare_report.ts';
import { linesOf, sweepsOf, sweepTexts } from './compare_sweep.ts';

// ─── Options ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** A parser of a comma-separated list of different things. */
const list =
  <T>(parse: (text: string) => T, separator: string | RegExp = ',') =>
  (text: string): T[] => {
    const all = text.split(separator).map((item) => parse(item.trim()));
    const twice = all.find((item, i) => all.indexOf(item) !== i);
    if (twice !== undefined) throw new InvalidArgumentError(`'${twice}' occurs twice`);
    return all;
  };

/** A comma, unless it stands between numbers: an option of a variant may be a list of these. */
const BETWEEN_VARIANTS = /,(?!\s*[-.\d])/;

const scriptOf = (experiment: string) => `experiment_${experiment}/train.ts`;

/** A variant with single spaces between its words, as it is called from then on. */
function variant(text: string): string {
  const words = text.split(/\s+/);
  const known = readdirSync('.').flatMap((name) => /^experiment_(.+)$/.exec(name)?.[1] ?? []);
  const trainable = known.filter((name) => existsSync(scriptOf(name)));
  if (trainable.includes(words[0])) return words.join(' ');
  throw new InvalidArgumentError(`'${words[0]}' is no experiment: expected one of ${trainable.join(', ')}`);
}

export const createCommand = () =>
  new Command('compare')
    .description('Trains variants with the same seeds, and reports how they differ.')
    .usage('--experiments <variants> [options] [-- options for all runs]')
    .addHelpText(
      'after',
      examples(
        'npm run compare -- --experiments base,drgrpo --seeds 0,1,2 --max-steps 200 --jobs 2',
        'npm run compare -- --experiments "drgrpo,drgrpo --critic-type grpo" -- --learning-rate 1e-4',
        'npm run compare -- --experiments base,drgrpo --sweep learning-rate=1e-4,2e-4,4e-4',
      ),
    )
    .optionsGroup('What to compare:')
    .option(
      '--experiments <variants>',
      'comma-separated: <name> of experiment_<name>, with options',
      list(variant, BETWEEN_VARIANTS),
    )
    .addOption(
      new Option('--sweep <option=values>', 'every variant with each of these; several sweeps multiply').argParser(
        sweepTexts,
      ),
    )
    .addOption(
      new Option('--seeds <list>', 'comma-separated, for each variant')
        .argParser(list(integer({ min: 0, max: Number.MAX_SAFE_INTEGER })))
        .default([0, 1, 2] as number[], '0,1,2'),
    )
    .option('--max-steps <n>', 'steps of each run', integer({ min: 1 }), 200)
    .optionsGroup('The comparison:')
    .option('--jobs <n>', 'runs side by side: they share the cores', integer({ min: 1 }), 1)
    .option('--output-dir <folder>', "the comparison's folder (default: runs/compare-<time>)")
    .option('--resume <folder>', 'continue a comparison, with the options that it was started with')
    .helpOption('-h, --help', 'display help for command');

/** What compare.json holds. */
type Saved = { options: Record<string, unknown>; runOptions: string[] };

/**
 * The command line, or what the comparison that it resumes was started with. Makes nothing.
 * @throws {UserError} for any mistake, also one in the options for the runs
 */
async function readComparison(argv: string[]): Promise<Comparison & { resumed: boolean }> {
  const lone = argv.indexOf('--');
  const [line, given] = lone < 0 ? [argv] : [argv.slice(0, lone), argv.slice(lone + 1)];
  let saved: (Saved & { file: string }) | undefined;
  const { resume, outputDir, experiments, ...options } = parseLine(line, (resume) => {
    saved = resume === undefined ? undefined : readSaved(resume);
    return saved;
  });
  const runOptions = given ?? saved?.runOptions ?? [];
  const { file, ...before } = saved ?? {};
  const now: Saved = { options: { experiments, ...options }, runOptions };
  if (saved && (outputDir !== undefined || !isDeepStrictEqual(now, before))) {
    throw new UserError(`--resume takes its options from ${file}: leave out those that differ`);
  }
  if (experiments === undefined) throw new UserError('name what to compare, as in --experiments base,drgrpo');
  const { sweep = [], ...rest } = options;
  const sweeps = sweepsOf(sweep);
  const lines =
    sweeps.length > 0
      ? linesOf(experiments, sweeps, runOptions)
      : experiments.map((name) => ({ name, variants: [name] }));
  if (lines.length > MOST_VARIANTS) {
    const each = sweeps.length > 1 ? ', which are the variants with every value of all sweeps but the first' : '';
    throw new UserError(`at most ${MOST_VARIANTS} lines fit into a chart, found ${lines.length}${each}`);
  }
  const variants = lines.flatMap((line) => line.variants);
  for (const label of variants) await checkRunOptions(label, runOptions);
  const folder = resume ?? outputDir ?? join('runs', `compare-${timestamp(new Date())}`);
  return { folder, experiments, sweeps, variants, ...rest, runOptions, resumed: resume !== undefined };
}

/** The comparison's own options; who forgets the lone `--` before those of the runs is told. */
function parseLine(line: string[], saved: (resume: string | undefined) => (Saved & { file: string }) | undefined) {
  try {
    return parseOptions(createCommand(), line, { saved: ({ resume }) => saved(resume) });
  } catch (error) {
    if (!(error instanceof UserError) || !error.message.startsWith('unknown option')) throw error;
    throw new UserError(`${error.message}; an option of the runs goes after a lone --, as in -- --eval-size 50`);
  }
}

function readSaved(folder: string): Saved & { file: string } {
  const file = join(folder, 'compare.json');
  try {
    const { options, runOptions } = JSON.parse(readFileSync(file, 'utf8')) as Saved;
    if (Array.isArray(options.experiments) && Array.isArray(runOptions)) return { file, options, runOptions };
  } catch {}
  throw new UserError(`--resume: ${folder} is not the folder of a comparison: it has no compare.json of one`);
}

/** The script of a variant, and what it is called with besides seed and folder. */
function callOf(label: string, runOptions: string[]): [script: string, options: string[]] {
  const [experiment, ...own] = label.split(' ');
  return [scriptOf(experiment), [...own, ...runOptions]];
}

/** Lets the experiment itself check its options, which is better now than in the middle of a night. */
async function checkRunOptions(label: string, runOptions: string[]): Promise<void> {
  const [script, options] = callOf(label, runOptions);
  const ours = ['--seed', '--max-steps', '--output-dir', '--resume'];
  const wrong = options.find((option) => ours.includes(option.split('=')[0]));
  if (wrong) throw new UserError(`${wrong} cannot be an option of a run: it is set from here, see --help`);
  const { createCommand }: typeof Experiment = await import(pathToFileURL(resolve(script)).href);
  try {
    checkCompletions(parseOptions(createCommand(), ['node', script, ...options]));
  } catch (error) {
    throw error instanceof UserError ? new UserError(`${label}: ${error.message}`) : error;
  }
}

// ─── Runs ────────────────────────────────────────────────────────────────────────────────────────────────────────────

type Run = { label: string; seed: number; folder: string };

/** Starts a run, or continues one that has been started before; its output is added to the log beside its folder. */
function start({ label, seed, folder }: Run, comparison: Comparison): { child: ChildProcess; log: string } {
  const [script, options] = callOf(label, comparison.runOptions);
  // Also those that begin on another day are prompted as the first ones: some chat templates tell the date.
  const date = statSync(join(comparison.folder, 'compare.json')).mtime.toLocaleDateString('sv-SE');
  const own = ['--seed', seed, '--max-steps', comparison.maxSteps, '--output-dir', folder].map(String);
  const fresh = ['--template-date', date, ...options, ...own];
  const words = existsSync(join(folder, 'config.json')) ? ['--resume', folder] : fresh;
  mkdirSync(dirname(folder), { recursive: true });
  const log = `${folder}.log`;
  appendToFile(log, `\n$ ${script} ${words.join(' ')}\n`);
  const output = openSync(log, 'a');
  // With a channel the run ends when this process does, whatever the reason: see runMain().
  const child = spawn(process.execPath, ['--import', 'tsx', script, ...words], {
    stdio: ['ignore', output, output, 'ipc'],
    // All are computed in the same way, whatever each would find to be faster beside the others.
    env: { ...process.env, ...threadLimits(comparison.jobs), TFJS_GPU_TRIAL: 'off' },
  });
  closeSync(output);
  return { child, log };
}

/** Why a run failed: the last sentence that it has left, or else how it ended. */
function reason(log: string, ended: string): string {
  const lines = readFileSync(log, 'utf8').split('\n');
  const own = lines.slice(lines.findLastIndex((line) => line.startsWith('$ ')));
  return own.findLast((line) => line.startsWith('error: '))?.slice(7) ?? ended;
}

/**
 * Makes the runs that are missing, seed by seed, and the report after each seed.
 * @returns whether all runs are finished; after Ctrl-C, those that were under way have saved and ended
 * @throws {UserError} the first failure of a run, when the others have saved and ended
 */
async function runAll(comparison: Comparison, runs: Run[]): Promise<boolean> {
  const { maxSteps, jobs } = comparison;
  const steps = new Map<Run, number>(); // done so far
  const finished = new Set<Run>();
  for (const run of runs) {
    steps.set(run, lastStep(run));
    if (await readRun(run.folder, maxSteps)) finished.add(run);
  }
  const queue = runs.filter((run) => !finished.has(run));
  const running = new Map<Run, ChildProcess>();
  const interrupt = onInterrupt();
  const sum = () => [...steps.values()].reduce((a, b) => a + b);
  const made = sum(); // before
  const bar = progress({ total: runs.length * maxSteps, start: made, every: Number.POSITIVE_INFINITY });
  let stopping = false;
  let failure: unknown;
  let reported = Promise.resolve();

  const stop = () => {
    if (stopping) return;
    stopping = true;
    // A terminal has sent Ctrl-C to the runs too, but a message and a signal together count once. One may have ended.
    for (const child of running.values()) child.send('SIGINT', () => {});
  };
  const show = () => bar.update(sum(), { finished: `${finished.size}/${runs.length} runs` });
  const watch = () => {
    if (interrupt.requested()) stop();
    const before = sum();
    for (const run of running.keys()) steps.set(run, lastStep(run));
    if (sum() !== before) show();
    else if (sum() === made) bar.note('the first runs begin'); // whose time says nothing of how long steps take
  };
  const make = async (run: Run) => {
    const name = `${run.label}, seed ${run.seed}`;
    const { child, log } = start(run, comparison);
    running.set(run, child);
    bar.log(`${name}: started`);
    const [code, signal] = await once(child, 'exit').finally(() => running.delete(run));
    if (code === 130 || signal === 'SIGINT' || signal === 'SIGTERM') return stop();
    const result = await readRun(run.folder, maxSteps);
    if (code !== 0 || !result) {
      const why = reason(log, `it ended with ${signal ?? `exit code ${code}`}`);
      throw new UserError(`${name}: ${why} (its log: ${log}; to continue: ${resuming(comparison.folder)})`);
    }
    finished.add(run);
    steps.set(run, maxSteps);
    show();
    const accuracy = result.entries.at(-1)!['eval/accuracy'];
    const came = typeof accuracy === 'number' ? `held-out accuracy ${(100 * accuracy).toFixed(1)} %` : 'finished';
    bar.log(`${name}: ${came}, ${(result.seconds / 60).toFixed(1)} minutes`);
    if (runs.some((other) => other.seed === run.seed && !finished.has(other))) return;
    reported = reported.then(() => writeReport(comparison)); // never two at once
    await reported;
  };
  const makeOneByOne = async () => {
    try {
      while (queue.length > 0 && !stopping && !interrupt.requested()) await make(queue.shift()!);
    } catch (error) {
      failure ??= error;
      stop();
    }
  };

  const timer = setInterval(watch, 500);
  try {
    await Promise.all(Array.from({ length: jobs }, makeOneByOne));
  } finally {
    clearInterval(timer);
    bar.stop();
    interrupt.dispose();
  }
  if (failure) throw failure;
  return finished.size === runs.length;
}

const lastStep = ({ folder }: Run): number => readMetrics(join(folder, 'metrics.jsonl')).at(-1)?.step ?? 0;
const resuming = (folder: string) => `npm run compare -- --resume ${quoted(folder)}`;

async function main(): Promise<void> {
  const { resumed, ...comparison } = await readComparison(process.argv);
  const { folder, experiments, sweeps, variants, seeds, maxSteps, jobs, runOptions } = comparison;
  if (resumed) lockFolder(folder);
  else {
    newFolder({ experiment: 'compare', outputDir: folder });
    const sweep = sweeps.length > 0 ? { sweep: sweeps.map(({ option, values }) => `${option}=${values}`) } : {};
    const saved: Saved = { options: { experiments, ...sweep, seeds, maxSteps, jobs }, runOptions };
    writeFileAtomically(join(folder, 'compare.json'), `${JSON.stringify(saved, null, 2)}\n`);
  }
  const runOf = (label: string, seed: number): Run => ({ label, seed, folder: runFolder(folder, label, seed) });
  const runs = seeds.flatMap((seed) => variants.map((label) => runOf(label, seed)));
  console.log(`comparison: ${folder}`);
  await writeReport(comparison);
  if (await runAll(comparison, runs)) {
    console.log(`report: ${folder}/report.html and report.md`);
  } else {
    console.log(`stopped; to continue: ${resuming(folder)}`);
    process.exitCode = 130;
  }
}

await runMain(import.meta.url, main);
