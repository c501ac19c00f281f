/**
 * How long `npm run watch` takes to open a long run: one of 10,000 steps and one of 60, in turns in the same browser.
 *
 *   npm run bench:watch
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import type { Browser } from 'playwright-core';
import { runMain } from '../lib/cli/main.ts';
import { integer, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { noBrowser, openPage, startBrowser } from '../testing/browser.ts';
import { writeRun } from '../testing/logs.ts';
import { bundlePage } from '../watch/document.ts';
import { serve, watchRuns } from '../watch/server.ts';
import { median } from './bench.ts';

const STEPS = [60, 10_000];

/** Milliseconds from the request until curves and a group of completions are there. */
async function opening(browser: Browser, url: string): Promise<number> {
  const { page } = await openPage(browser, url);
  await Promise.all([page.waitForSelector('.panel'), page.waitForSelector('.card')]);
  const milliseconds = await page.evaluate<number>('performance.now()');
  await page.close();
  return milliseconds;
}

async function main(): Promise<void> {
  const { repeats } = parseOptions(
    new Command('bench:watch')
      .description('How long the page of npm run watch takes to open a run of 10,000 steps, beside one of 60.')
      .option('--repeats <n>', 'times that each is opened, after one that is not counted', integer({ min: 1 }), 9),
  );
  if (noBrowser) throw new UserError(`bench:watch needs a browser${noBrowser}`);
  const folder = mkdtempSync(join(tmpdir(), 'grpo-'));
  const ends: (() => unknown)[] = [() => rmSync(folder, { recursive: true, force: true })];
  try {
    const [browser, parts] = await Promise.all([startBrowser(), bundlePage()]);
    ends.push(() => browser.close());
    const runs: { steps: number; url: string; times: number[] }[] = [];
    for (const steps of STEPS) {
      const run = join(folder, String(steps));
      writeRun(run, { steps });
      const watched = watchRuns([run]);
      await watched.refresh();
      await watched.curves();
      const { url, close } = await serve(watched, parts, 0);
      ends.push(close);
      runs.push({ steps, url, times: [] });
    }
    for (let i = 0; i <= repeats; i++) {
      for (const { url, times } of runs) times.push(await opening(browser, url));
    }
    for (const { steps, times } of runs) {
      const [, ...counted] = times;
      const range = `(${Math.min(...counted).toFixed(0)} to ${Math.max(...counted).toFixed(0)})`;
      console.log(`${steps} steps: ${median(counted).toFixed(0)} ms ${range}`);
    }
    const [short, long] = runs.map(({ times }) => median(times.slice(1)));
    console.log(`ratio: ${(long / short).toFixed(2)}`);
  } finally {
    for (const end of ends.reverse()) await end();
  }
}

await runMain(import.meta.url, main);
