import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { jsonLines } from '../testing/processes.ts';
import { createTimeline } from './timeline.ts';

it('a sampler has worked on what was dropped, too, and waits for what comes after', () => {
  const folder = mkdtempSync(join(tmpdir(), 'timeline-'));
  const { add } = createTimeline({ folder, step: 0 });
  const batch = (began: number, ended: number) => ({
    ...{ rollouts: [{ completion: [1, 2] }], switches: [[0, 0]] as [number, number][], sampler: 0, began, ended },
  });
  const step = (number: number) => ({ number, began: performance.now() });
  add(step(1), { ...batch(0, 1000), job: 1, dropped: [], waiting: 0 }, performance.now());
  const metrics = add(
    step(2),
    { ...batch(4500, 5000), job: 3, dropped: [batch(1000, 4000)], waiting: 1 },
    performance.now(),
  );
  expect(metrics).toMatchObject({
    'idle/sampler_seconds': 0.5,
    'queue/dropped': 1,
    'queue/waiting': 1,
    rollout_tokens_per_second: 4,
  });
  const stretches = jsonLines(join(folder, 'timeline.jsonl')).filter(
    ({ step, who }) => step === 2 && who === 'sampler 0',
  );
  expect(stretches.map(({ what, from, to }) => [what, from, to])).toEqual([
    ['samples', 1000, 4000],
    ['waits', 4000, 4500],
    ['samples', 4500, 5000],
  ]);
  rmSync(folder, { recursive: true });
});
