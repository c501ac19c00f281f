/** Who worked when, and how old samples are: schedule.jsonl, timeline.jsonl and timeline.svg in the folder of a run, and metrics. */
import { join } from 'node:path';
import type { TopLevelSpec } from 'vega-lite';
import { writeFileAtomically } from '../lib/folders.ts';
import { draw, STYLE } from '../lib/run/curves.ts';
import { appendEntries, dropEntriesAfter, readEntries } from '../lib/run/metrics.ts';
import type { RunFolder } from '../lib/run/run_folder.ts';
import { mean, sum } from '../lib/statistics.ts';
import type { Batch } from './sampling.ts';

/** Steps in the picture. */
const SHOWN = 8;

/** A stretch of time, milliseconds since the epoch: of the trainer, or of a sampler. */
type Stretch = {
  step: number;
  who: string;
  what: 'samples' | 'waits' | 'trains';
  from: number;
  to: number;
  version: number;
};

/**
 * Notes the steps of a run.
 * @returns `used`: the batches of the steps before; `add`: notes a step, and says in metrics how long trainer and samplers have
 *   waited, in seconds; `picture`: draws the last steps of this process
 */
export function createTimeline({ folder, step }: Pick<RunFolder, 'folder' | 'step'>) {
  const [schedule, timeline] = ['schedule.jsonl', 'timeline.jsonl'].map((name) => join(folder, name));
  for (const file of [schedule, timeline]) dropEntriesAfter(file, step);
  const used = readEntries(schedule).map(({ job }) => Number(job));
  const lastEnd = new Map<string, number>(); // of each sampler
  const recent: Stretch[] = [];
  const add = (
    { number, began }: { number: number; began: number },
    batch: Batch<{ completion: number[] }>,
    taken: number,
  ): Record<string, number> => {
    const sinceEpoch = (time: number) => performance.timeOrigin + time;
    const isOwn = batch.sampler === undefined;
    const trainer = { step: number, who: 'trainer', version: number - 1 };
    const whoOf = ({ sampler }: { sampler?: number | undefined }) =>
      sampler === undefined ? 'trainer' : `sampler ${sampler}`;
    const inVain = batch.dropped.map(
      (one): Stretch => ({
        ...{ step: number, who: whoOf(one), what: 'samples', from: one.began, to: one.ended },
        version: one.switches[0][1],
      }),
    );
    for (const { who, to } of inVain) lastEnd.set(who, to);
    const who = whoOf(batch);
    const free = lastEnd.get(who) ?? batch.began; // since when the sampler could have begun
    const sampler = { step: number, who, version: batch.switches[0][1] };
    const stretches: Stretch[] = [
      ...inVain,
      ...(isOwn ? [] : [{ ...sampler, what: 'waits' as const, from: free, to: batch.began }]),
      { ...sampler, what: 'samples', from: batch.began, to: batch.ended },
      ...(isOwn ? [] : [{ ...trainer, what: 'waits' as const, from: sinceEpoch(began), to: sinceEpoch(taken) }]),
      { ...trainer, what: 'trains', from: sinceEpoch(taken), to: sinceEpoch(performance.now()) },
    ];
    appendEntries(timeline, stretches);
    recent.push(...stretches);
    while (recent[0].step <= number - SHOWN) recent.shift();
    appendEntries(schedule, [
      { step: number, job: batch.job, switches: batch.switches, sampler: batch.sampler ?? null },
    ]);
    lastEnd.set(who, batch.ended);
    const tokens = sum(batch.rollouts.map(({ completion }) => completion.length));
    return {
      'queue/waiting': batch.waiting,
      'queue/dropped': batch.dropped.length,
      'idle/trainer_seconds': isOwn ? 0 : (taken - began) / 1000,
      'idle/sampler_seconds': isOwn ? 0 : (batch.began - free) / 1000,
      // Of the one who sampled: the trainer may have found the batch there.
      rollout_tokens_per_second: (1000 * tokens) / (batch.ended - batch.began),
    };
  };
  const picture = async (): Promise<void> => {
    if (recent.length === 0) return;
    writeFileAtomically(join(folder, 'timeline.svg'), await draw(chart(recent)));
    console.log(`who worked when: ${join(folder, 'timeline.svg')}`);
  };
  return { used, add, picture };
}

/** Bars over seconds, a row for the trainer and one for each sampler, with the number of the step that a batch is for. */
function chart(stretches: Stretch[]): TopLevelSpec {
  // Before its first step here the trainer was at work on others.
  const start = Math.min(...stretches.filter(({ who }) => who === 'trainer').map(({ from }) => from));
  const values = stretches
    .filter(({ to }) => to > start)
    .map(({ from, to, ...rest }) => ({
      ...rest,
      from: (Math.max(from, start) - start) / 1000,
      to: (to - start) / 1000,
    }));
  const samplers = [...new Set(stretches.map(({ who }) => who))].filter((who) => who !== 'trainer').sort();
  const seconds = (field: string) => ({
    field,
    type: 'quantitative' as const,
    axis: { title: 'seconds', grid: false },
  });
  const rows = { field: 'who', type: 'nominal' as const, sort: ['trainer', ...samplers], axis: { title: null } };
  return {
    ...STYLE,
    ...{ width: 760, height: { step: 46 }, data: { values } },
    encoding: { y: rows },
    layer: [
      {
        mark: { type: 'bar', stroke: 'white', strokeWidth: 1 },
        encoding: {
          x: seconds('from'),
          x2: { field: 'to' },
          color: {
            field: 'what',
            type: 'nominal',
            scale: { domain: ['samples', 'trains', 'waits'], range: ['#9ecae1', '#fdae6b', '#eaeef2'] },
            legend: { title: null, orient: 'top' },
          },
        },
      },
      {
        transform: [{ filter: "datum.what != 'waits'" }, { calculate: '(datum.from + datum.to) / 2', as: 'middle' }],
        mark: { type: 'text', fontSize: 10, color: '#24292f' },
        encoding: { x: seconds('middle'), text: { field: 'step' } },
      },
    ],
  } as TopLevelSpec;
}

/**
 * How stale a step's tokens are. Effective sample size: the share (Σw)² / Σw² / n of n fresh ones that they are worth, where w
 * are the ratios as they are, before they are cut: of tokens, or one of each completion.
 */
export function stalenessMetrics(
  experience: { versions: number[]; ratios: number[] }[],
  step: number,
  { importanceCap, importanceLevel }: { importanceCap: number; importanceLevel: 'token' | 'sequence' },
): Record<string, number> {
  const staleness = experience.flatMap(({ versions }) => versions.map((version) => step - 1 - version));
  const raw = experience.flatMap(({ ratios }) => (importanceLevel === 'token' ? ratios : ratios.slice(0, 1)));
  const largest = raw.reduce((a, b) => Math.max(a, b), 0); // products of many ratios may be huge
  const scaled = raw.map((w) => w / largest);
  return {
    'staleness/mean': mean(staleness),
    'staleness/max': staleness.reduce((a, b) => Math.max(a, b), 0),
    'importance/mean': mean(raw),
    'importance/ess': sum(scaled) ** 2 / sum(scaled.map((w) => w * w)) / raw.length,
    'importance/clipped_ratio': mean(raw.map((w) => Number(w > importanceCap))),
  };
}
