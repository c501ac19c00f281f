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

const STEPS = { short: 60, long: 10_000 };

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
  const [browser, parts] = await Promise.all([startBrowser(), bundlePage()]);
  try {
    const runs = await Promise.all(
      Object.entries(STEPS).map(async ([name, steps]) => {
        writeRun(join(folder, name), { steps });
        const watched = watchRuns([join(folder, name)]);
        await watched.refresh();
        await watched.curves();
        return { name, ...(await serve(watched, parts, 0)), times: [] as number[] };
      }),
    );
    for (let i = 0; i <= repeats; i++) {
      for (const { url, times } of runs) times.push(await opening(browser, url));
    }
    const medians = runs.map(({ name, times }) => {
      const sorted = times.slice(1).sort((a, b) => a - b);
      const median = sorted[Math.floor(repeats / 2)];
      const range = `(${sorted[0].toFixed(0)} to ${sorted[repeats - 1].toFixed(0)})`;
      console.log(`${STEPS[name as keyof typeof STEPS]} steps: ${median.toFixed(0)} ms ${range}`);
      return median;
    });
    console.log(`ratio: ${(medians[1] / medians[0]).toFixed(2)}`);
    await Promise.all(runs.map(({ close }) => close()));
  } finally {
    await browser.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

await runMain(import.meta.url, main);
