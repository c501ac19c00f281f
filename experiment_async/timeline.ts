/** Who worked when: schedule.jsonl and timeline.jsonl in the folder of a run, and a picture of the latter. */
import { join } from 'node:path';
import { appendEntries, dropEntriesAfter } from '../lib/run/metrics.ts';
import type { RunFolder } from '../lib/run/run_folder.ts';
import { sum } from '../lib/statistics.ts';
import type { Batch } from './sampling.ts';

/** A stretch of time, milliseconds since the epoch: of the trainer, or of a sampler. */
export type Stretch = {
  step: number;
  who: string;
  what: 'samples' | 'waits' | 'trains';
  from: number;
  to: number;
  version: number;
};

/**
 * Notes the steps of a run.
 * @returns `add`: notes a step, and says in metrics how long trainer and samplers have waited, in seconds
 */
export function createTimeline({ folder, step }: Pick<RunFolder, 'folder' | 'step'>) {
  const [schedule, timeline] = ['schedule.jsonl', 'timeline.jsonl'].map((name) => join(folder, name));
  for (const file of [schedule, timeline]) dropEntriesAfter(file, step);
  const lastEnd = new Map<string, number>(); // of each sampler
  const add = (
    { number, began }: { number: number; began: number },
    batch: Batch<{ completion: number[] }>,
    taken: number,
  ): Record<string, number> => {
    const sinceEpoch = (time: number) => performance.timeOrigin + time;
    const who = batch.sampler === undefined ? 'trainer' : `sampler ${batch.sampler}`;
    const isOwn = batch.sampler === undefined;
    const trainer = { step: number, who: 'trainer', version: number - 1 };
    const stretches: Stretch[] = [
      { step: number, who, what: 'samples', from: batch.began, to: batch.ended, version: batch.switches[0][1] },
      ...(isOwn ? [] : [{ ...trainer, what: 'waits' as const, from: sinceEpoch(began), to: sinceEpoch(taken) }]),
      { ...trainer, what: 'trains', from: sinceEpoch(taken), to: sinceEpoch(performance.now()) },
    ];
    appendEntries(timeline, stretches);
    appendEntries(schedule, [
      { step: number, job: batch.job, switches: batch.switches, sampler: batch.sampler ?? null },
    ]);
    const idle = batch.began - (lastEnd.get(who) ?? batch.began);
    lastEnd.set(who, batch.ended);
    const tokens = sum(batch.rollouts.map(({ completion }) => completion.length));
    return {
      'queue/waiting': batch.waiting,
      'queue/dropped': batch.dropped,
      'idle/trainer_seconds': isOwn ? 0 : (taken - began) / 1000,
      'idle/sampler_seconds': isOwn ? 0 : idle / 1000,
      'sampler/tokens_per_second': (1000 * tokens) / (batch.ended - batch.began),
    };
  };
  return { add };
}
