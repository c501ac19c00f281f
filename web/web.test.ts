/** The page that trains, in a real browser. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Browser, Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { groupAdvantages, type Options, reward } from '../experiment_base/train.ts';
import { openSafetensors } from '../lib/checkpoint/safetensors.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { look, noBrowser, type Opening, openPage, startBrowser } from '../testing/browser.ts';
import { NODE, REPOSITORY, runProcess } from '../testing/processes.ts';
import { buildPage } from './build.ts';
import type { Algorithm, News, Order } from './messages.ts';
import { EXAMPLE, REWARD } from './page/example.ts';
import { serve } from './server.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-web-'));
afterAll(() => rmSync(temp, { recursive: true, force: true }));

const SMALL = {
  batchSize: 4,
  numGenerations: 4,
  numIterations: 2,
  learningRate: 2.5e-4,
  clipRange: 0.2,
  klCoef: 0.01,
  seed: 3,
  maxSteps: 3,
};

/** What counts completions, and what is computed of their tokens. */
const EXACT = ['reward', 'reward_std', 'rewards/accuracy/mean', 'completions/mean_length'];
const ROUNDED = ['loss', 'grad_norm', 'entropy', 'kl'];
const pick = (metrics: Record<string, number>, names: string[]) => names.map((name) => [name, metrics[name]]);

/** On WebGPU: in software a step takes ten seconds or more. `STEPS=30 npx vitest run web/web.test.ts -t WebGPU` makes more of them. */
const STEPS = Number(process.env.STEPS ?? 2);

describe('what the page explains itself by', () => {
  const rewards = EXAMPLE.rows.map((row) => row.reward!);

  it('has the advantages of experiment_base', () => {
    const [advantages] = groupAdvantages([rewards]);
    for (const [i, { advantage }] of EXAMPLE.rows.entries()) expect(advantage).toBeCloseTo(advantages[i], 3);
  });

  it('counts the tokens of models/tiny, with the one that ends an answer', async () => {
    const { encode } = await loadTokenizer('models/tiny');
    for (const { completion, tokens } of EXAMPLE.rows) expect(tokens).toBe(encode(completion).length + 1);
  });

  it('has its rewards, by the function that stands on the page', () => {
    const onPage = new Function(`${REWARD}; return reward;`)() as (text: string, answer: string) => number;
    const texts = [
      ...EXAMPLE.rows.map(({ completion }) => completion),
      '',
      '<answer></answer>',
      '<answer>1</answer><answer>76</answer>',
    ];
    const problem = { answer: EXAMPLE.answer! };
    for (const text of texts)
      expect(onPage(text, problem.answer)).toBe(reward(text, problem, { formatReward: 0.1 } as Options));
    expect(texts.slice(0, 4).map((text) => onPage(text, '76'))).toEqual(rewards);
  });
});

describe.skipIf(noBrowser !== '')(`npm run web in a browser${noBrowser}`, () => {
  let browser: Browser;
  let page: { url: string; close: () => Promise<void> };
  beforeAll(async () => {
    [browser, page] = await Promise.all([startBrowser(), buildPage().then((files) => serve(files, 0))]);
  });
  afterAll(async () => {
    await browser?.close();
    await page?.close();
  });

  const open = (how?: Opening) => openPage(browser, page.url, how);
  const press = (page: Page, name: string) => page.getByRole('button', { name, exact: true }).click();
  /** Begins anew, which is asked twice. */
  const anew = async (page: Page) => {
    await press(page, 'From the beginning');
    await press(page, 'Press again: what is learnt will be lost');
  };
  const status = (page: Page) => page.textContent('.status');
  const mistake = (page: Page) => page.textContent('.mistake');
  const shows = (page: Page, selector: string, text: RegExp) =>
    expect.poll(() => page.textContent(selector), { timeout: 120_000 }).toMatch(text);

  /** Few and short answers, by the page's own fields. */
  async function set(page: Page, settings: Partial<typeof SMALL> = {}): Promise<void> {
    for (const [name, value] of Object.entries({ ...SMALL, ...settings }))
      await page.fill(`[name=${name}]`, String(value));
    await page.locator('h1').click(); // what was typed counts when the field is left
  }

  /** Metrics of each step: of an experiment in Node, on wasm. */
  async function stepsInNode(algorithm: Algorithm, given: typeof SMALL): Promise<Record<string, number>[]> {
    const folder = join(temp, `${algorithm}-${given.batchSize}`);
    const options = Object.entries(given).flatMap(([name, value]) => [
      `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`,
      String(value),
    ]);
    const backend = ['--backend', 'wasm', '--blas', 'off', '--threads', '2'];
    const others = ['--eval-size', '0', '--output-dir', folder, ...backend];
    const { code, stderr } = await runProcess([...NODE, `${algorithm}/train.ts`, ...options, ...others]);
    expect([code, stderr]).toEqual([0, '']);
    const lines = readFileSync(join(folder, 'metrics.jsonl'), 'utf8').trim().split('\n');
    return lines.map((line) => JSON.parse(line));
  }

  /** The same in a tab. */
  async function stepsInTab(browser: Browser, start: Order) {
    const { page: tab, problems } = await openPage(browser, page.url);
    const news = await tab.evaluate<News[]>(`new Promise((resolve) => {
      const worker = new Worker('worker.js', { type: 'module' });
      const { port1, port2 } = new MessageChannel();
      ${REWARD}
      port1.onmessage = ({ data }) => port1.postMessage({ rewards: data.map((row) => reward(row.text, row.answer)) });
      const all = [];
      worker.onmessage = ({ data }) => {
        all.push(data);
        if (data.news === 'mistake' || data.news === 'paused') resolve(all);
      };
      worker.postMessage(${JSON.stringify(start)}, [port2]);
      worker.postMessage({ order: 'go' });
    })`);
    await tab.close();
    expect(problems).toEqual([]);
    return { ready: news[0], steps: news.flatMap((it) => (it.news === 'step' ? [it.metrics] : [])) };
  }

  it.each(['experiment_base', 'experiment_drgrpo'] as const)(
    'gives the numbers of %s in Node, to the bit',
    async (algorithm) => {
      const given = { ...SMALL, maxSteps: 30 };
      const start: Order = { order: 'start', algorithm, backend: 'wasm', threads: 2, evalSize: 0, ...given };
      const { ready, steps } = await stepsInTab(browser, start);
      expect(ready).toEqual({ news: 'ready', backend: 'wasm, 2 threads (--blas off)' });
      const names = [...EXACT, ...ROUNDED];
      const inNode = await stepsInNode(algorithm, given);
      expect(steps.map((metrics) => pick(metrics, names))).toEqual(inNode.map((metrics) => pick(metrics, names)));
      expect(steps).toHaveLength(30);
    },
  );

  it(`gives them on WebGPU within rounding, over ${STEPS} steps`, async () => {
    // In software, where compiling zeros into every shader would take minutes; no kernel reads what it has not written.
    const software = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];
    const browser = await startBrowser([...software, '--enable-dawn-features=disable_workgroup_init'], {
      VK_ICD_FILENAMES: process.env.VK_ICD_FILENAMES ?? '/usr/lib/chromium/vk_swiftshader_icd.json',
    });
    try {
      const few = { ...SMALL, batchSize: 2, numIterations: 1, maxSteps: STEPS };
      const start: Order = {
        ...{ order: 'start', algorithm: 'experiment_base', backend: 'webgpu', threads: 1, evalSize: 0 },
        ...few,
      };
      const { ready, steps } = await stepsInTab(browser, start);
      expect(ready).toMatchObject({ news: 'ready', backend: expect.stringMatching(/^webgpu/) });
      const inNode = await stepsInNode('experiment_base', few);
      // What counts completions is equal as long as no token is another.
      expect(steps.map((metrics) => pick(metrics, EXACT))).toEqual(inNode.map((metrics) => pick(metrics, EXACT)));
      const differences = steps.map((metrics, i) =>
        ROUNDED.map((name) => Math.abs(metrics[name] - inNode[i][name]) / Math.max(1, Math.abs(inNode[i][name]))),
      );
      if (STEPS > 2)
        console.info('largest difference of each step:', differences.map((all) => Math.max(...all)).join(' '));
      for (const [i, all] of differences.entries()) expect(Math.max(...all)).toBeLessThan(i < 2 ? 5e-5 : 1e-3);
    } finally {
      await browser.close();
    }
  });

  it('trains, is legible and fits, from 360 to 1440 px, light and dark', async () => {
    for (const [width, colorScheme] of [
      [360, 'light'],
      [360, 'dark'],
      [768, 'light'],
      [1440, 'light'],
      [1440, 'dark'],
    ] as const) {
      const { page, problems } = await open({ width, colorScheme });
      await set(page, { maxSteps: width === 1440 ? 3 : 1 });
      if (width === 1440) await page.check('.check input'); // Dr. GRPO beside it
      await page.click('.first');
      await shows(page, '.status', /^finished/);
      const columns = await page.$$eval('.columns .column', (all) => all.length);
      expect(columns).toBe(width === 1440 ? 2 : 1);
      const lengths = (column: number) =>
        page.$$eval(`.column:nth-child(${column}) .bar`, (all) =>
          all.map((bar) => Number.parseFloat(bar.getAttribute('style')!.split(':')[1])),
        );
      expect(Math.max(...(await lengths(1)))).toBeCloseTo(50);
      if (columns > 1) expect(Math.max(...(await lengths(2)))).toBeLessThan(40); // one scale for both
      await page.check('[value="weight"]');
      const titles = await page.$$eval('.columns .card .token', (all) =>
        all.map((token) => token.getAttribute('title')),
      );
      expect(titles.length).toBeGreaterThan(20);
      for (const title of titles) expect(title).toMatch(/, weight [+−]0\.\d/);
      const { overflow, faint } = await look(page);
      expect([width, colorScheme, overflow, faint, problems]).toEqual([width, colorScheme, [], [], []]);
      await page.close();
    }
  });

  it('ends a reward that throws, loops, returns text, is no JavaScript or asks the network, and goes on', async () => {
    const { page } = await open();
    await set(page, { maxSteps: 2 });
    // A browser tells of requests that it then refuses: what counts is what arrives.
    const arrived: string[] = [];
    const listener = createServer((request, response) => {
      arrived.push(request.url!);
      response.writeHead(200, { 'Access-Control-Allow-Origin': '*' }).end();
    });
    await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
    const elsewhere = `http://127.0.0.1:${(listener.address() as AddressInfo).port}/`;
    const cases: [code: string, sentence: RegExp][] = [
      [
        'function reward() { throw new Error("no"); }',
        /^the reward throws “Error: no” for the completion ".*: mend it/,
      ],
      ['function reward() { for (;;); }', /^the reward took longer than 2 seconds: mend it/],
      ['function reward(text) { return text; }', /^the reward must return a finite number, found ".*: mend it/],
      ['function reward() { return 1 / 0; }', /found Infinity/],
      ['function reward( {', /^the reward is no JavaScript \(SyntaxError: .*, at its end\)/],
      ['function reward() {\n  return 1 1;\n}', /^the reward is no JavaScript \(SyntaxError: .*, line 2\)/],
      ['const other = 1;', /^the reward throws “ReferenceError: reward is not defined”/],
      [
        `function reward() { const r = new XMLHttpRequest(); r.open('GET', '${elsewhere}', false); r.send(); return 1; }`,
        /^the reward throws “NetworkError/,
      ],
      ['function reward() { importScripts("data:text/javascript,1"); return 1; }', /^the reward throws “NetworkError/],
      ['function reward() { return new Function("return 1")(); }', /^the reward throws “EvalError/],
    ];
    for (const [code, sentence] of cases) {
      await page.fill('textarea', code);
      await press(page, 'Use this reward');
      await press(page, 'One step');
      await shows(page, '.mistake', sentence);
      expect(await status(page)).toMatch(/^step 0 of 2/);
    }
    expect(arrived).toEqual([]);
    listener.close();
    await page.fill('textarea', 'function reward(text) { return -text.length; }');
    await press(page, 'Use this reward');
    await press(page, 'One step');
    await shows(page, '.status', /^step 1 of 2/);
    expect(await mistake(page)).toBe('');
    expect(await page.textContent('.curves')).toMatch(/reward −\d/);
    await page.fill('textarea', 'function reward(text) { return text.includes("7"); }'); // in use without being told
    await press(page, 'One step');
    await shows(page, '.status', /^finished: step 2 of 2/);
    expect(await page.textContent('.curves')).toMatch(/reward 0?\.?\d/);
    expect(await page.$$eval('.curves line.mark', (all) => all.length)).toBe(2); // after step 1, in both charts
    await page.close();
  });

  it('refuses numbers that cannot be, with a sentence', async () => {
    const { page } = await open();
    await page.fill('[name=numGenerations]', '1');
    await page.click('.first');
    expect(await mistake(page)).toBe('G, answers to each: expected an integer from 2 to 32, found 1');
    expect(await status(page)).toBe('not started');
    await page.close();
  });

  it('needs no mouse: starts, pauses, goes on, is asked', async () => {
    const { page, problems } = await open();
    await set(page, { maxSteps: 50 });
    await page.evaluate('document.activeElement.blur(); scrollTo(0, 0)');
    const focused = () =>
      page.evaluate<string>(`(() => {
        const it = document.activeElement;
        const name = it.matches('button, summary') ? it.textContent : it.name || it.getAttribute('aria-label') || it.type || it.localName;
        return it !== document.body && getComputedStyle(it).outlineStyle === 'none' ? 'invisible ' + it.outerHTML : name;
      })()`);
    const tabTo = async (name: string) => {
      for (let i = 0; i < 60; i++) {
        if ((await focused()) === name) return;
        await page.keyboard.press('Tab');
        expect(await focused()).not.toMatch(/^invisible/);
      }
      throw new Error(`${name} is not reached by Tab`);
    };
    await tabTo('Start');
    await page.keyboard.press('Enter');
    await shows(page, '.status', /^step [1-9]/);
    await tabTo('Pause');
    await page.keyboard.press('Enter');
    await shows(page, '.first', /Go on/);
    const paused = await status(page);
    await tabTo('numGenerations');
    await page.keyboard.press('ArrowUp');
    await tabTo('a question');
    await page.keyboard.press('Control+A');
    await page.keyboard.type('10+12');
    await page.keyboard.press('Enter');
    await shows(page, '.said', /: 10\+12.*answer/);
    expect(await status(page)).toBe(paused);
    await tabTo('One step');
    await page.keyboard.press('Space');
    await expect.poll(() => status(page), { timeout: 60_000 }).not.toBe(paused);
    await expect.poll(() => page.$$eval('.columns .card', (all) => all.length)).toBe(5); // G is another
    expect(problems).toEqual([]);
    await page.close();
  });

  it('takes weights away and back', async () => {
    const { page, problems } = await open();
    await set(page);
    const take = async () => {
      const [download] = await Promise.all([page.waitForEvent('download'), press(page, 'Download the weights')]);
      return readFileSync(await download.path());
    };
    /** The tensors in a file, by their names. */
    const tensorsIn = async (bytes: Buffer) => {
      const file = join(temp, 'any.safetensors');
      writeFileSync(file, bytes);
      const { tensors, read, close } = await openSafetensors(file);
      const values = await Promise.all(
        [...tensors.keys()].sort().map(async (name) => [name, await read(name)] as const),
      );
      await close();
      return Object.fromEntries(values);
    };
    const own = readFileSync(join(REPOSITORY, 'models/tiny/model.safetensors'));
    const first = await take();
    expect(await tensorsIn(first)).toEqual(await tensorsIn(own));
    await press(page, 'One step');
    await shows(page, '.status', /^step 1/);
    const trained = await take();
    expect([trained.length, trained.equals(first)]).toEqual([first.length, false]);
    const give = (buffer: Buffer) =>
      page.setInputFiles('[type=file]', { name: 'any.safetensors', mimeType: 'application/octet-stream', buffer });
    await give(own);
    await shows(page, '.status', /the model of the file/);
    expect((await take()).equals(first)).toBe(true);
    await give(Buffer.from('no weights at all'));
    await shows(page, '.mistake', /^yours\/model\.safetensors: .*not a safetensors file/);
    expect((await take()).equals(first)).toBe(true);
    expect(problems).toEqual([]);
    await page.close();
  });

  /** Does something with the records that a browser keeps; `act` is the text of a function of all, and of their store. */
  const inStore = <T>(page: Page, act: string) =>
    page.evaluate<T>(`new Promise((resolve) => {
      const opening = indexedDB.open('grpo');
      opening.onsuccess = () => {
        const transaction = opening.result.transaction('trainings', 'readwrite');
        const store = transaction.objectStore('trainings');
        const asked = store.getAll();
        let result;
        asked.onsuccess = () => void (result = (${act})(asked.result, store));
        transaction.oncomplete = () => {
          opening.result.close();
          resolve(result);
        };
      };
    })`);
  /** What was seen of each training; and of its checkpoint the part that has the hashes of all others. */
  const kept = async (page: Page) => {
    const textsOf = `({ text, files }) => [text, new TextDecoder().decode(files.get('training_state.json'))]`;
    const all = await inStore<[string, string][]>(page, `(all) => all.map(${textsOf})`);
    return all.map((texts) => texts.map((text) => JSON.parse(text)));
  };
  const isKept = (page: Page, step: number, trainings = 1) =>
    expect
      .poll(async () => (await kept(page)).map(([{ step }]) => step), { timeout: 120_000 })
      .toEqual(Array(trainings).fill(step));
  const reload = async (page: Page, step: number | RegExp) => {
    await page.reload();
    const text = typeof step === 'number' ? String(step) : step.source;
    await shows(page, '.status', new RegExp(`step ${text} of \\d+, kept in this browser`));
  };

  it('goes on after a reload to the bit, with the settings and the reward of then, Dr. GRPO beside it', async () => {
    const train = async (isReloaded: boolean) => {
      const { page, problems } = await open();
      await set(page, { maxSteps: 13, numIterations: 1 });
      await page.check('.check input');
      const step = async (number: number) => {
        await press(page, 'One step');
        await isKept(page, number, 2);
      };
      await step(1);
      await step(2);
      if (isReloaded) await reload(page, 2);
      await page.fill('[name=numGenerations]', '3');
      await page.fill('textarea', 'function reward(text) { return text.length % 5; }');
      await press(page, 'Use this reward');
      await step(3);
      if (isReloaded) await reload(page, 3);
      await press(page, 'Go on');
      const isFarther = async () => (await kept(page)).every(([{ step }]) => step >= 10);
      await expect.poll(isFarther, { timeout: 60_000 }).toBe(true);
      if (isReloaded) {
        await reload(page, /1\d/); // in the middle of a step
        if (await page.isEnabled('.first')) await press(page, 'Go on');
      }
      await isKept(page, 13, 2);
      expect(await page.textContent('.curves')).toMatch(/reward, Dr. GRPO \d/);
      expect(await page.inputValue('[name=numGenerations]')).toBe('3');
      expect(problems).toEqual([]);
      const all = await kept(page);
      await page.close();
      return all;
    };
    const [reloaded, never] = [await train(true), await train(false)];
    expect(reloaded).toEqual(never);
    expect(never[0][0].seen.curves.reward).toHaveLength(13);
  });

  it('refuses what was kept damaged, or by another version, and begins anew', async () => {
    const { page, problems } = await open();
    await set(page);
    await press(page, 'One step');
    await isKept(page, 1);
    const spoil = (change: string) =>
      inStore(page, `([it], store) => void ((${change})(it), store.put(it, 'experiment_base'))`);
    const beginsAnew = async (sentence: RegExp) => {
      await shows(page, '.mistake', sentence);
      expect(await status(page)).toBe('not started');
      await set(page);
      await press(page, 'One step');
      await shows(page, '.status', /^step 1 of/);
      await isKept(page, 1);
    };
    await spoil('(it) => it.files.get("optimizer.safetensors")[5000] ^= 1');
    await reload(page, 1);
    await press(page, 'Go on');
    await beginsAnew(/^what this browser has kept is damaged: Start begins.*optimizer\.safetensors is damaged/);
    await spoil('(it) => { it.text = it.text.replace(/"seed":3/, \'"seed":4\'); }');
    await page.reload();
    await beginsAnew(/^what this browser has kept is damaged: Start begins from the beginning$/);
    await spoil('(it) => { it.version = "older"; }');
    await page.reload();
    await beginsAnew(/^what this browser has kept is of another version of this page: Start begins/);
    await reload(page, 1);
    await anew(page);
    await expect.poll(() => kept(page)).toEqual([]);
    await page.reload();
    expect([await status(page), await mistake(page)]).toEqual(['not started', '']);
    expect(problems).toEqual([]);
    await page.close();
  });

  it('lets one tab of several keep, and says so in the others', async () => {
    const context = await browser.newContext();
    const [first, second] = [await openPage(context, page.url), await openPage(context, page.url)];
    for (const { page } of [first, second]) {
      await set(page);
      await press(page, 'One step');
      await shows(page, '.status', /^step 1 of 3/);
    }
    await shows(first.page, '.bar-of-buttons', /step 1 is kept in this browser$/);
    await shows(second.page, '.bar-of-buttons', /not kept in this browser: another tab of this page is open/);
    await first.page.close();
    await reload(second.page, 1);
    await context.close();
  });

  it('can be started again where it could not start', async () => {
    const [files, model] = [await buildPage(), 'files/models/tiny/model.safetensors'];
    const whole = files.get(model)!;
    const { url, close } = await serve(files.set(model, Buffer.from('no weights')), 0);
    const context = await browser.newContext({ serviceWorkers: 'block' }); // which would have all files without a network
    const { page, problems } = await openPage(context, url);
    await set(page);
    await context.setOffline(true);
    await page.click('.first');
    await shows(page, '.mistake', /^worker\.js cannot be reached/);
    expect(await status(page)).toBe('not started');
    await context.setOffline(false);
    await context.route('**/test.jsonl', (route) => route.abort());
    await page.click('.first');
    await shows(page, '.mistake', /^files\/tasks\/sums\/test\.jsonl cannot be reached/);
    expect(await status(page)).toBe('not started');
    await context.unroute('**/test.jsonl');
    problems.length = 0; // a browser tells of what is refused
    await page.selectOption('select', 'webgpu');
    await page.click('.first');
    await shows(page, '.mistake', /^this browser finds no graphics card/);
    expect(await status(page)).toBe('not started');
    await page.selectOption('select', 'wasm');
    await page.click('.first');
    await shows(page, '.mistake', /^models\/tiny\/model\.safetensors: .*not a safetensors file/);
    expect(await status(page)).toBe('not started');
    files.set(model, whole);
    await page.click('.first');
    await shows(page, '.status', /^finished/);
    expect(await mistake(page)).toBe('');
    expect(problems).toEqual([]);
    await context.close();
    await close();
  });

  it('has threads on a host of static files from the second visit on, and opens without a network', async () => {
    const files = await buildPage();
    const server = createServer(({ url = '' }, response) => {
      const name = url === '/tab/' ? 'index.html' : url.replace('/tab/', '');
      const type = { js: 'text/javascript', html: 'text/html', css: 'text/css', wasm: 'application/wasm' }[
        name.split('.').at(-1)!
      ];
      response.writeHead(files.has(name) ? 200 : 404, type ? { 'Content-Type': type } : {}).end(files.get(name));
    });
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    const context = await browser.newContext();
    const { page, problems } = await openPage(
      context,
      `http://127.0.0.1:${(server.address() as AddressInfo).port}/tab/`,
    );
    const makeStep = async () => {
      if (await page.isEnabled('text=From the beginning')) await anew(page);
      await set(page);
      await press(page, 'One step');
      await shows(page, '.status', /^step 1 of 3/);
      return status(page);
    };
    expect(await makeStep()).toMatch(/wasm, 1 thread$/);
    await page.evaluate('navigator.serviceWorker.ready');
    await page.reload();
    expect(await makeStep()).toMatch(/wasm, \d+ threads$/);
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
    await page.reload();
    expect(await makeStep()).toMatch(/wasm, \d+ threads$/);
    // What is answered from the cache, the browser has first asked for in vain.
    expect(problems.filter((text) => !/ERR_CONNECTION_REFUSED/.test(text))).toEqual([]);
    await context.close();
  });

  it('serves what it has built, and nothing else', async () => {
    for (const path of ['package.json', '..%2fpackage.json', 'files/../package.json', '/etc/passwd', 'worker.ts'])
      expect((await fetch(page.url + path)).status).toBe(404);
    expect((await fetch(page.url, { method: 'POST' })).status).toBe(405);
    expect((await fetch(page.url, { headers: { origin: 'http://other.example' } })).status).toBe(403);
  });
});
