/** Learning-rate schedules, as in transformers' `get_scheduler`. */

export const SCHEDULES = ['constant', 'linear', 'cosine'] as const;
export type Schedule = (typeof SCHEDULES)[number];

/**
 * The factor of the learning rate at one update: linear from 0 to 1 over the warm-up, then the schedule's way.
 * @param step - 0 for the first update
 * @param total - updates of the whole run; linear and cosine reach 0 there
 */
export function scheduleFactor(
  schedule: Schedule,
  step: number,
  { warmup, total }: { warmup: number; total: number },
): number {
  if (step < warmup) return step / Math.max(1, warmup);
  if (schedule === 'constant') return 1;
  const progress = (step - warmup) / Math.max(1, total - warmup);
  return schedule === 'linear' ? Math.max(0, 1 - progress) : Math.max(0, 0.5 * (1 + Math.cos(Math.PI * progress)));
}
