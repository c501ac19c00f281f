/** The page in a real browser. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { look, noBrowser, type Opening, openPage, startBrowser } from '../testing/browser.ts';
import { writeRun } from '../testing/logs.ts';
import { NODE, REPOSITORY } from '../testing/processes.ts';
import { bundlePage, type Parts, reportPage } from './document.ts';
import { reportOf, serve, watchRuns } from './server.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-page-'));
const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));

const MARKUP = '<img src=x onerror="document.title=1"><script>document.title=1</script>';
const RTL = '\u202egnp.exe\u202c שלום';
const ANSI = '\u001b[2J\u001b[31mred\u0007';
/** A step in which everything is hostile. */
const HOSTILE = [
  ...[MARKUP, RTL, ANSI, 'x'.repeat(100_000), '</pre>&lt;&amp;', 'word '.repeat(20_000)].map((completion, i) => ({
    ...{ step: 61, question: `${MARKUP}${'q'.repeat(3000)}`, answer: MARKUP, completion, tokens: 3 },
    ...{ reward: i % 2, rewards: { [MARKUP]: i % 2 }, advantage: i % 2 ? 1 : -1 },
    ...(i < 3 ? { pieces: ['<b>', completion, '\n'], log_probs: [-0.5, null, -4] } : {}),
  })),
];

describe.skipIf(noBrowser !== '')(`npm run watch in a browser${noBrowser}`, () => {
  let [browser, parts]: [Browser?, Parts?] = [];
  beforeAll(async () => {
    [browser, parts] = await Promise.all([startBrowser(), bundlePage()]);
    const answer = (reward: number) => ({ question: `1+1 ${MARKUP}`, answer: '2', completion: ANSI, reward });
    writeRun(at('first'), {
      steps: 60,
      samples: HOSTILE,
      notices: [{ step: 9, rule: 'any', text: `the ${MARKUP} fell` }],
      answers: [0, 60].map((step) => ({ step, answers: [answer(step / 60)] })),
    });
    writeRun(at('second'), { steps: 60, seed: 1, experiment: 'experiment_drgrpo' });
  });
  afterAll(() => browser?.close());

  /** Opens an address, and waits until there is something to see. */
  async function open(url: string, how: Opening = {}): Promise<{ page: Page; problems: string[] }> {
    const opened = await openPage(browser!, url, how);
    await opened.page.waitForSelector('.card');
    return opened;
  }

  const served = async (folders: string[], use: (url: string) => Promise<void>) => {
    const watched = watchRuns(folders);
    await watched.refresh();
    await watched.curves();
    const { url, close } = await serve(watched, parts!, 0);
    try {
      await use(url);
    } finally {
      for (const context of browser!.contexts()) await context.close();
      await close();
    }
  };
  const both = (use: (url: string) => Promise<void>) => served([at('first'), at('second')], use);
  const stepShown = (page: Page) => page.textContent('output');
  /** Waits until an element shows a text. */
  const shows = (page: Page, selector: string, text: string | RegExp) =>
    expect.poll(() => page.textContent(selector), { timeout: 60_000, interval: 10 }).toMatch(text);

  it('is legible and fits, from 360 to 1440 px, light and dark, with whatever a run has written', () =>
    both(async (url) => {
      for (const width of [360, 768, 1440]) {
        for (const colorScheme of ['light', 'dark'] as const) {
          const { page, problems } = await open(url, { width, colorScheme });
          await page.waitForSelector('.panel', { timeout: 120_000 });
          await page.selectOption('select', '1');
          for (const shade of ['log-prob', 'advantage', 'weight']) {
            await page.check(`[value="${shade}"]`);
            // The step with hostile text, and one beside another run's.
            for (const key of ['End', 'ArrowLeft']) {
              await page.keyboard.press(key); // a choice takes no arrows: the focus is elsewhere
              const { overflow, faint, background } = await look(page);
              const where = `${width} px, ${colorScheme}, ${shade}, ${key}`;
              expect([where, overflow, faint]).toEqual([where, [], []]);
              expect(background).toBe(colorScheme === 'dark' ? 'rgb(13, 17, 23)' : 'rgb(255, 255, 255)');
              await page.focus('.card');
            }
          }
          expect(problems).toEqual([]);
          await page.close();
        }
      }
    }));

  it('shows text as text', () =>
    both(async (url) => {
      const { page, problems } = await open(url);
      expect(await stepShown(page)).toBe('step 61');
      const texts = await page.$$eval('.card .text', (all) => all.map((text) => text.textContent));
      expect(texts[0]).toBe(`<b>${MARKUP}\n`);
      expect(texts[1]).toBe('<b>⟨202e⟩gnp.exe⟨202c⟩ שלום\n');
      expect(texts[2]).toBe('<b>␛[2J␛[31mred␇\n');
      expect(texts[3]).toHaveLength(100_000);
      expect(texts[4]).toBe('</pre>&lt;&amp;');
      expect(
        await page.$$eval('.prompt img, .text img, .text b, watch-notices img, watch-answers img', (all) => all.length),
      ).toBe(0);
      expect(await page.textContent('watch-notices')).toContain(`the ${MARKUP} fell`);
      expect(await page.textContent('watch-answers')).toContain(`1+1 ${MARKUP}`);
      expect(await page.title()).toBe('GRPO runs');
      expect(await page.$$eval('.token.tool', (all) => all.length)).toBe(3);
      expect(problems).toEqual([]);
    }));

  it('needs no mouse', () =>
    both(async (url) => {
      const { page } = await open(url);
      const press = async (...keys: string[]) => {
        for (const key of keys) await page.keyboard.press(key);
        await page.waitForLoadState('networkidle').catch(() => {});
      };
      const focused = () => page.evaluate('document.activeElement.getAttribute("aria-label")');
      await press('Home');
      await shows(page, 'output', /^step 1$/);
      await press('ArrowRight', 'ArrowRight');
      await shows(page, 'output', /^step 3$/);
      await press('ArrowLeft');
      await shows(page, 'output', /^step 2$/);
      await press('ArrowDown');
      expect(await focused()).toMatch(/^completion 1 of 8, reward [01], advantage [+−]1$/);
      await press('ArrowDown', 'ArrowDown', 'ArrowUp');
      expect(await focused()).toMatch(/^completion 2 of 8/);
      await press('ArrowRight'); // to the same completion of the next step
      await shows(page, 'output', /^step 3$/);
      expect(await focused()).toMatch(/^completion 2 of 8/);
      await press('2');
      await shows(page, 'h1', 'experiment_drgrpo');
      await press('End');
      await shows(page, 'output', /^step 60$/);
      await press('1');
      await shows(page, 'h1', 'experiment_base');

      // Everything that can be clicked is reached by Tab, and shows that it is.
      await page.evaluate('document.activeElement.blur()');
      const reached = new Set<string>();
      for (let i = 0; i < 60; i++) {
        await page.keyboard.press('Tab');
        reached.add(
          await page.evaluate<string>(`(() => {
            const it = document.activeElement;
            if (it !== document.body && getComputedStyle(it).outlineStyle === 'none') return 'invisible ' + it.outerHTML;
            return it.textContent && it.matches('button, summary') ? it.textContent : it.getAttribute('type') ?? it.localName;
          })()`),
        );
      }
      expect([...reached].filter((name) => name.startsWith('invisible'))).toEqual([]);
      for (const name of ['←', '→', 'newest', 'range', 'radio', 'select', 'article', '3 tokens', '2drgrposecond'])
        expect([...reached]).toContain(name);

      // A choice has the arrows for itself; a table opens with Enter.
      await page.focus('[value="log-prob"]');
      await press('ArrowRight');
      expect(await page.isChecked('[value="advantage"]')).toBe(true);
      await page.focus('.card');
      await press('Home');
      await shows(page, 'output', /^step 1$/);
      await page.focus('.card summary');
      await press('Enter');
      expect(await page.textContent('.card table')).toMatch(/^tokenlog-probprobability<think>/);
      // And stays open in the next step, with the focus where it was.
      await press('ArrowRight');
      await shows(page, 'output', /^step 2$/);
      expect(await page.textContent('.card table')).toMatch(/^tokenlog-probprobability<think>/);
      expect(await page.evaluate('document.activeElement.localName')).toBe('summary');
    }));

  it('shades tokens by what they weigh in the loss of each run', () =>
    both(async (url) => {
      const { page, problems } = await open(url);
      await page.keyboard.press('Home');
      await page.selectOption('select', '1');
      await page.check('[value="weight"]');
      await page.waitForSelector('.column:nth-child(2) .token[title*="weight"]', { timeout: 60_000 });
      expect(await page.textContent('.meaning')).toContain('weighs in the loss');
      // An advantage of 1 or −1, of a completion of 12 tokens, in a group of 8: over 12 · 8, and over 32 · 8.
      for (const [column, weight] of [
        [1, '0.0104'],
        [2, '0.00391'],
      ]) {
        const card = page.locator(`.column:nth-child(${column}) .card`).first();
        await card.locator('summary').click();
        expect(await card.locator('table').textContent()).toMatch(/^tokenlog-probprobabilityweight<think>/);
        expect(await card.locator('td').nth(3).textContent()).toMatch(new RegExp(`^[+−]${weight}$`));
        expect(await card.locator('.token').first().getAttribute('style')).toContain('--share: 100%');
      }
      expect(problems).toEqual([]);
    }));

  it('puts the same question of another run beside', () =>
    both(async (url) => {
      const { page } = await open(url);
      await page.keyboard.press('Home');
      await page.selectOption('select', '1');
      await page.waitForSelector('.column:nth-child(2) .card');
      const questions = await page.$$eval('.prompt p', (all) => all.map((text) => text.textContent));
      expect(questions).toEqual(['10+12', '10+12']);
      await page.focus('.card');
      await page.keyboard.press('End');
      await shows(page, '.columns', 'was not asked that question');
    }));

  it('follows a run within two seconds, and says so when it is killed', async () => {
    const program = `
      const { openRun } = await import('./lib/run/run_folder.ts');
      const { stepOf } = await import('./testing/logs.ts');
      const options = { modelName: 'models/tiny', maxSteps: 1000 };
      const run = openRun({ experiment: 'experiment_base', outputDir: process.argv[1], options });
      for (let step = 1; ; step++) {
        const { metrics, samples } = stepOf(step);
        run.log(metrics);
        run.sample(samples);
        console.log(step, Date.now());
        await new Promise((resolve) => setTimeout(resolve, 1500));
      }`;
    const child = spawn(NODE[0], [...NODE.slice(1), '--input-type=module', '-e', program, at('live')], {
      cwd: REPOSITORY,
    });
    try {
      const lines = createInterface(child.stdout);
      await once(lines, 'line');
      await served([at('live')], async (url) => {
        const { page, problems } = await open(url);
        const late: number[] = [];
        for (let i = 0; i < 4; i++) {
          const [step, when] = String(await once(lines, 'line'))
            .split(' ')
            .map(Number);
          const reaches = (selector: string) =>
            expect
              .poll(async () => Number(/step (\d+)/.exec((await page.textContent(selector)) ?? '')?.[1]), {
                ...{ timeout: 60_000, interval: 10 },
              })
              .toBeGreaterThanOrEqual(step);
          await Promise.all([reaches('.title'), reaches('output')]);
          late.push((Date.now() - when) / 1000);
        }
        expect(Math.min(...late)).toBeLessThan(2); // the machine that tests run on may be busy at times
        expect(await page.textContent('.state')).toBe('running');
        child.kill('SIGKILL');
        await shows(page, '.state', 'its process was killed');
        expect(await page.textContent('watch-options')).toContain(`--resume ${at('live')}`);
        expect(problems).toEqual([]);
      });
    } finally {
      child.kill('SIGKILL');
    }
  });

  it('opens a run of 10,000 steps, and goes through it', async () => {
    writeRun(at('long'), { steps: 10_000 });
    const watched = watchRuns([at('long')]);
    await watched.refresh();
    await watched.curves();
    const { url, close } = await serve(watched, parts!, 0);
    const { page, problems } = await open(url);
    await page.waitForSelector('.panel');
    await page.keyboard.press('Home');
    await shows(page, 'output', /^step 1$/);
    for (let i = 0; i < 50; i++) await page.keyboard.press('ArrowRight');
    await shows(page, 'output', /^step 51$/);
    await page.fill('input[type="range"]', '7000');
    await shows(page, 'output', /^step 7001$/);
    expect(await page.textContent('watch-curves')).toContain('each point is the mean of 34 steps');
    expect(problems).toEqual([]);
    await page.close();
    await close();
  });

  it('is the same in one file, without a server', async () => {
    const report = await reportOf(watchRuns([at('first'), at('second')]));
    writeFileSync(at('report.html'), reportPage(parts!, report));
    const { page, problems } = await open(pathToFileURL(at('report.html')).href, { width: 768 });
    expect(await stepShown(page)).toBe('step 61');
    expect(await page.$$eval('.panel', (all) => all.length)).toBe(report.curves.panels.length);
    expect((await page.$$eval('.card .text', (all) => all.map((text) => text.textContent)))[0]).toBe(`<b>${MARKUP}\n`);
    await page.keyboard.press('Home');
    await page.selectOption('select', '1');
    await page.waitForSelector('.column:nth-child(2) .card');
    const { overflow, faint } = await look(page);
    expect([overflow, faint, problems]).toEqual([[], [], []]);
    await page.close();
  });
});
