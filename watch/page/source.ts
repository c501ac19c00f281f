/** Where the page has its data from: the server, or the report that it is part of. */
import type { Like, Report, Told, ToldCurves, ToldStep } from '../told.ts';

export type Source = {
  /** Tells of all runs, now and whenever something is new. `isThere`: whether there is still somebody who tells. */
  listen: (hear: (told: Told) => void, isThere: (isThere: boolean) => void) => void;
  curves: () => Promise<ToldCurves>;
  /** A step by its place; or the one that has the question of another run's. Undefined: there is none. `weighed`: with weights. */
  step: (run: number, at: number, weighed: boolean) => Promise<ToldStep | undefined>;
  like: (run: number, other: Like, weighed: boolean) => Promise<ToldStep | undefined>;
};

async function fetched<T>(address: string): Promise<T | undefined> {
  const response = await fetch(address).catch(() => undefined);
  return response?.ok ? ((await response.json()) as T) : undefined;
}

const served: Source = {
  listen: (hear, isThere) => {
    const events = new EventSource('/events');
    events.addEventListener('message', ({ data }) => {
      isThere(true);
      hear(JSON.parse(data));
    });
    events.addEventListener('error', () => isThere(false)); // it tries again by itself
  },
  curves: async () => (await fetched('/curves')) ?? { panels: [], legend: [], note: '' },
  step: (run, at, weighed) => fetched(`/step?run=${run}&at=${at}${weighed ? '&weighed' : ''}`),
  // A step without the question is answered by 404, which a browser would complain of: the server says null.
  like: async (run, other, weighed) => {
    const address = `/like?run=${run}&other=${other.run}&at=${other.at}${weighed ? '&weighed' : ''}`;
    return (await fetched<ToldStep | null>(address)) ?? undefined;
  },
};

const inReport = ({ told, curves, steps, like }: Report): Source => ({
  listen: (hear) => hear(told),
  curves: async () => curves,
  step: async (run, at) => steps[run][at],
  like: async (run, other) => steps[run][like[other.run][run][other.at] ?? -1],
});

export function findSource(): Source {
  const report = document.getElementById('report');
  return report ? inReport(JSON.parse(report.textContent)) : served;
}
