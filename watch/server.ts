/**
 * Shows runs on a page: while they go on, and afterwards.
 *
 *   npm run watch                                         the newest run below runs/
 *   npm run watch -- runs/experiment_base/<time> runs/experiment_drgrpo/<time>
 *   npm run watch -- runs/experiment_base/<time> --export report.html
 *
 * Nothing is ever written but what --export names, and nothing is served but what these runs say of themselves: a request
 * names a run by its number, never a file.
 */

import { existsSync, readdirSync, statSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { Command } from '@commander-js/extra-typings';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, parseOptions } from '../lib/cli/options.ts';
import { mistakeIn, UserError } from '../lib/errors.ts';
import { writeFileAtomically } from '../lib/folders.ts';
import { drawRuns } from './curves.ts';
import { bundlePage, type Parts, POLICY, reportPage, servedPage } from './document.ts';
import { LOCAL_HEADERS, listenLocally, refuse } from './local_server.ts';
import type { Report, Told, ToldCurves } from './told.ts';
import { watchRun } from './watched_run.ts';

/** Runs, of which each has a key on the keyboard. */
const MOST_RUNS = 9;
/** Milliseconds between two looks at the files of runs, while somebody watches. */
const GLANCE = 500;
/** Steps whose completions a report has, over all of its runs. */
const STEPS_IN_REPORT = 200;

export const createCommand = () =>
  new Command('watch')
    .description('Shows runs on a page of this machine: curves, groups, what was noticed, answers before and after.')
    .argument('[runs...]', 'their folders (default: the newest below runs/)')
    .addHelpText(
      'after',
      examples(
        'npm run watch',
        'npm run watch -- runs/experiment_base/<time> runs/experiment_drgrpo/<time>',
        'npm run watch -- runs/experiment_base/<time> --export report.html',
      ),
    )
    .option('--port <n>', 'of the page; 0: any that is free', integer({ min: 0, max: 65535 }), 8023)
    .option('--export <file>', 'write the page with all that it shows to one file instead, for any browser')
    .helpOption('-h, --help', 'display help for command');

/** The newest run below a folder of runs, those of comparisons included. */
export function newestRun(root: string): string {
  const folders = (path: string): string[] =>
    existsSync(path)
      ? readdirSync(path, { withFileTypes: true }).flatMap((entry) => {
          return entry.isDirectory() ? [join(path, entry.name)] : [];
        })
      : [];
  // runs/<experiment>/<time>, and runs/compare-<time>/<variant>/seed-<n>
  const found = folders(root).flatMap((folder) => [folder, ...folders(folder).flatMap((f) => [f, ...folders(f)])]);
  const runs = found.filter((folder) => existsSync(join(folder, 'config.json')) && isRun(folder));
  if (runs.length === 0) throw new UserError(`there is no run below ${root}/ yet: name the folder of one`);
  const started = (folder: string) => statSync(join(folder, 'config.json')).mtimeMs;
  return runs.reduce((newest, folder) => (started(folder) > started(newest) ? folder : newest));
}

const isRun = (folder: string): boolean => {
  return existsSync(join(folder, 'metrics.jsonl')) || readdirSync(folder).some((name) => name.startsWith('.lock-'));
};

// ─── What is told ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Runs that are watched together. */
export function watchRuns(folders: string[]) {
  const runs = folders.map((folder) => watchRun(folder));
  let version = 0;
  let drawn: { version: number; curves: Promise<ToldCurves> } | undefined;
  let reading: Promise<unknown> = Promise.resolve();
  const read = async () => {
    const news = await Promise.all(runs.map((run) => run.refresh()));
    if (news.includes(true)) version++;
    return news.includes(true);
  };
  const told = (): Told => ({ runs: runs.map((run) => run.told()), version });
  return {
    runs,
    told,
    /** Reads what is new in all of them, and says whether anything is: one look after the other, whoever wants one. */
    refresh: (): Promise<boolean> => {
      reading = reading.catch(() => {}).then(read);
      return reading as Promise<boolean>;
    },
    /** Drawn once, whoever asks. */
    curves: (): Promise<ToldCurves> => {
      if (drawn?.version !== version) {
        const entries = runs.map((run) => ({ told: run.told(), entries: run.entries() }));
        drawn = { version, curves: drawRuns(entries) };
      }
      return drawn.curves;
    },
  };
}

export type Watched = ReturnType<typeof watchRuns>;

/** All that a report shows. Of more steps than it has room for, some at equal distances, the first and the last. */
export async function reportOf(watched: Watched): Promise<Report> {
  const { runs, told } = watched;
  await Promise.all(runs.map(({ described }) => described));
  await watched.refresh();
  const room = Math.max(2, Math.floor(STEPS_IN_REPORT / runs.length));
  const kept = told().runs.map(({ groups }) => {
    const count = Math.min(groups, room);
    return Array.from({ length: count }, (_, i) => Math.round((i * (groups - 1)) / Math.max(1, count - 1)));
  });
  const steps = await Promise.all(
    runs.map(async (run, r) => {
      const found = await Promise.all(kept[r].map((at) => run.stepAt(at, { weighed: true })));
      return found.flatMap((step, at) => (step ? [{ ...step, at }] : []));
    }),
  );
  // Among the steps that are here, the one that has the same question.
  const like = steps.map((ofRun) =>
    steps.map((ofOther) =>
      ofRun.map(({ groups: [group], step }) => {
        const same = ofOther.filter(({ groups }) => groups[0]?.question === group?.question);
        const distance = (other: { step: number }) => Math.abs(other.step - step);
        return same.length === 0 ? null : same.reduce((a, b) => (distance(b) < distance(a) ? b : a)).at;
      }),
    ),
  );
  const { runs: all, version } = told();
  const shown = all.map((run, r) => ({ ...run, groups: steps[r].length }));
  return { told: { runs: shown, version }, curves: await watched.curves(), steps, like };
}

// ─── Server ──────────────────────────────────────────────────────────────────────────────────────────────────────────

const HEADERS = { ...LOCAL_HEADERS, 'Content-Security-Policy': POLICY };

/** A whole number that a query names; NaN if it does not. */
const numberIn = (text: string | null): number => (/^\d{1,9}$/.test(text ?? '') ? Number(text) : Number.NaN);

/**
 * Serves the page to this machine.
 * @returns its address, and what ends it
 * @throws {UserError} if the port is taken
 */
export async function serve(
  watched: Watched,
  { script, style }: Parts,
  port: number,
): Promise<{ url: string; close: () => Promise<void> }> {
  const listeners = new Set<ServerResponse>();
  let isOpen = true;

  const answer = (response: ServerResponse, status: number, type: string, body: string) => {
    response.writeHead(status, { ...HEADERS, 'Content-Type': `${type}; charset=utf-8` }).end(body);
  };
  const json = (response: ServerResponse, value: unknown) =>
    answer(response, 200, 'application/json', JSON.stringify(value ?? null));

  /** Every address that there is. */
  const PLACES: Record<string, (response: ServerResponse, query: URLSearchParams) => void | Promise<void>> = {
    '/': (response) => answer(response, 200, 'text/html', servedPage),
    '/page.js': (response) => answer(response, 200, 'text/javascript', script),
    '/page.css': (response) => answer(response, 200, 'text/css', style),
    '/curves': async (response) => json(response, await watched.curves()),
    '/step': async (response, query) =>
      json(response, await runIn(query)?.stepAt(numberIn(query.get('at')), weighedIn(query))),
    '/like': async (response, query) => {
      const run = runIn(query);
      const asked = runIn(query, 'other')?.questionAt(numberIn(query.get('at')));
      const place = asked && run?.placeOf(asked);
      json(response, place === undefined ? undefined : await run?.stepAt(place, weighedIn(query)));
    },
    '/events': async (response) => {
      await watched.refresh(); // while nobody listened, nobody looked
      response.writeHead(200, { ...HEADERS, 'Content-Type': 'text/event-stream; charset=utf-8' });
      response.write(event());
      listeners.add(response);
      response.on('close', () => listeners.delete(response));
    },
  };
  const runIn = (query: URLSearchParams, name = 'run') => watched.runs[numberIn(query.get(name))];
  const weighedIn = (query: URLSearchParams) => ({ weighed: query.has('weighed') });
  const event = () => `data: ${JSON.stringify(watched.told())}\n\n`;

  const { url, close } = await listenLocally(port, (request, response) => {
    const [path, query] = (request.url ?? '').split('?', 2);
    const place = Object.hasOwn(PLACES, path) ? PLACES[path] : undefined;
    if (!place) return refuse(response, 404, 'there is nothing here');
    Promise.resolve(place(response, new URLSearchParams(query))).catch((error) => {
      console.error(mistakeIn(error) ?? error);
      if (response.headersSent) response.end();
      else refuse(response, 500, 'this could not be read: see the terminal');
    });
  });

  const look = async () => {
    while (isOpen) {
      await setTimeout(GLANCE, undefined, { ref: false });
      if (listeners.size > 0 && (await watched.refresh())) for (const listener of listeners) listener.write(event());
    }
  };
  const keepLooking = (): Promise<void> =>
    look().catch((error) => {
      console.error(mistakeIn(error) ?? error); // a file that was replaced just now, say
      return keepLooking();
    });
  await watched.refresh();
  void keepLooking();
  return {
    url,
    close: () => {
      isOpen = false;
      for (const listener of listeners) listener.end();
      return close();
    },
  };
}

async function main(): Promise<void> {
  const command = createCommand();
  const { port, export: file } = parseOptions(command);
  const [named] = command.processedArgs;
  const folders = named.length > 0 ? named : [newestRun('runs')];
  if (folders.length > MOST_RUNS) throw new UserError(`${folders.length} runs: name at most ${MOST_RUNS}`);
  const watched = watchRuns(folders);
  // Curves now: to load what draws them takes seconds, in which nobody would be answered.
  const [parts] = await Promise.all([bundlePage(), watched.refresh().then(() => watched.curves())]);
  if (file !== undefined) {
    writeFileAtomically(file, reportPage(parts, await reportOf(watched)));
    console.log(file);
    return;
  }
  const { url } = await serve(watched, parts, port);
  console.log(`${folders.join('\n')}\n${url} (Ctrl-C ends it)`);
}

await runMain(import.meta.url, main);
