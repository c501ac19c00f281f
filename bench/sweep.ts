/**
 * `npm run bench -- --sweep`: how a step's time grows with the size of the group, the length of completions, the number of
 * prompts, the width of the model and the number of threads, one at a time. Each point is a process of its own.
 */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { UserError } from '../lib/errors.ts';
import { draw } from '../lib/run/curves.ts';
import { writeRandomModel } from './random_model.ts';

/** What is varied: the option, the axis's title, and its values. */
const SWEEPS: { option: string; title: string; values: number[] }[] = [
  { option: 'group', title: 'completions of a prompt (G)', values: [1, 2, 4, 8, 16, 32] },
  { option: 'new-tokens', title: 'tokens of a completion', values: [16, 32, 64, 128, 256] },
  { option: 'prompts', title: 'prompts of a step', values: [2, 4, 8, 16, 32] },
  { option: 'width', title: 'width of the model', values: [64, 128, 256, 512] },
  { option: 'threads', title: 'threads', values: [1, 2] },
];

type Point = { sweep: string; value: number; part: string; seconds: number };

const PARTS = { rollout_s: 'sampling', log_probs_s: 'log-probs', train_s: 'training' };

/**
 * Prints a table a sweep, and draws them.
 * @param checkpoint - of all sweeps but that of the width, which makes models of its own
 * @param flags - passed on to every process
 * @param file - the SVG to write
 */
export async function sweep(checkpoint: string, flags: string[], file: string): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'grpo-'));
  const points: Point[] = [];
  try {
    for (const { option, title, values } of SWEEPS) {
      console.log(`\n${title}\n${'value'.padStart(8)}   sampling log-probs  training   step, s   tokens/s`);
      for (const value of values) {
        const model = option === 'width' ? join(folder, `${value}`) : checkpoint;
        if (option === 'width') await writeRandomModel(`width-${value}`, model);
        const times = run(model, [...flags, ...(option === 'width' ? [] : [`--${option}`, String(value)])]);
        for (const [name, part] of Object.entries(PARTS)) {
          points.push({ sweep: title, value, part, seconds: times[name] });
        }
        const columns = [...Object.keys(PARTS), 'step_s'].map((name) => times[name].toFixed(3).padStart(10));
        console.log(String(value).padStart(8), columns.join(''), times.step_tok_s.toFixed(0).padStart(10));
      }
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, await plot(points));
  console.log(`\n${file}`);
}

function run(checkpoint: string, flags: string[]): Record<string, number> {
  const script = join(import.meta.dirname, 'bench.ts');
  const command = ['--import', 'tsx', script, checkpoint, ...flags, '--json'];
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  if (status !== 0)
    throw new UserError(
      stderr
        .trim()
        .split('\n')
        .at(-1)!
        .replace(/^error: /, ''),
    );
  return JSON.parse(stdout);
}

/** Seconds of the parts of a step, stacked, over each thing that was varied. */
export const plot = (points: Point[]): Promise<string> =>
  draw({
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    background: 'white',
    padding: 12,
    columns: 2,
    spacing: { row: 24, column: 36 },
    concat: SWEEPS.map(({ title }) => ({
      width: 320,
      height: 160,
      data: { values: points.filter((point) => point.sweep === title) },
      mark: { type: 'area' as const, point: { size: 24 } },
      encoding: {
        x: {
          field: 'value',
          type: 'quantitative' as const,
          scale: { zero: true, nice: false },
          axis: { title, tickCount: 6, format: 'd' },
        },
        y: {
          field: 'seconds',
          type: 'quantitative' as const,
          stack: 'zero' as const,
          axis: { title: 'seconds a step' },
        },
        color: {
          field: 'part',
          type: 'nominal' as const,
          sort: Object.values(PARTS),
          scale: { range: ['#0969da', '#8250df', '#bf8700'] },
          legend: { title: null, orient: 'top' as const },
        },
      },
    })),
    config: { font: 'Helvetica, Arial, sans-serif', view: { stroke: null }, axisX: { grid: false } },
  });
