import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { normals } from '../lib/random.ts';
import { escapeText } from '../lib/run/document.ts';
import { interval, intervalOfSeeds } from './compare_curves.ts';
import { runFolder, writeReport } from './compare_report.ts';

const VARIANTS = ['base', 'drgrpo --critic-type grpo'];
const SEEDS = [0, 1, 2];
const STEPS = 60;
const PANELS = 9; // the last one is pass@k
const NASTY =
  '<think>a|b `c` *d*\n</think><script>alert(1)</script> &amp; [x](y) \u001b[31m \u202eright to left ' +
  'x'.repeat(500);

const temp = mkdtempSync(join(tmpdir(), 'compare-report-'));
afterAll(() => rmSync(temp, { recursive: true }));

const comparison = (folder: string, seeds = SEEDS) => ({
  ...{ folder, experiments: VARIANTS, sweeps: [], variants: VARIANTS, seeds, maxSteps: STEPS },
  ...{ jobs: 2, runOptions: ['--blas', 'it\'s "off"'] },
});

/** A finished run, as an experiment leaves it. */
function writeRun(folder: string, v: number, seed: number, change = 0): void {
  for (const name of ['final_model', `checkpoint-${STEPS}`]) mkdirSync(join(folder, name), { recursive: true });
  const noise = (step: number) => normals(8, seed, v, step);
  const rows = Array.from({ length: STEPS + 1 }, (_, step) => {
    const accuracy = { 'eval/accuracy': 0.4 + (0.5 * step) / STEPS + 0.01 * seed + (step ? 0.02 * v + change : 0) };
    if (step === 0)
      return { step, ...accuracy, 'eval/sampled_accuracy': 0.4, 'eval/pass_at_2': 0.6, 'eval/pass_at_8': 0.8 };
    const [a, b, c, d, e, f] = noise(step);
    return {
      ...{ step, reward: 0.4 + (0.5 * step) / STEPS + 0.05 * a, kl: 0.001 * step * (1 + v) + 0.002 * b * b },
      'completions/mean_length': 25 + v + c,
      'completions/mean_right_length': 24 + v + c,
      'completions/mean_wrong_length': step % 7 === 0 ? null : 30 - 3 * v + 2 * d,
      ...{ entropy: Math.exp(-step / 40) + 0.05 * e * e, grad_norm: 1 + v + 0.3 * f * f },
      ...{ tokens_per_second: 4000 + 100 * seed, step_time: 1 },
      ...(step % 20 === 0 ? accuracy : {}),
      ...(step === STEPS
        ? { 'eval/sampled_accuracy': 0.8, 'eval/pass_at_2': 0.9, 'eval/pass_at_8': 0.95 + 0.01 * v }
        : {}),
    };
  });
  const samples = [1, STEPS].flatMap((step) =>
    Array.from({ length: 4 }, (_, i) => {
      const completion = i === 1 ? NASTY : `<think>${i}</think><answer>${step}</answer>`;
      return { step, question: `${step}+|1`, answer: `${step + 1}`, completion, tokens: 9, reward: 0.1, advantage: 0 };
    }),
  );
  const options = { seed, outputDir: folder, learningRate: 1e-4, ...(v === 1 ? { criticType: 'grpo' } : {}) };
  const lines = (all: object[]) => all.map((row) => `${JSON.stringify(row)}\n`).join('');
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ experiment: 'experiment_base', options }));
  writeFileSync(join(folder, 'metrics.jsonl'), lines(rows));
  writeFileSync(join(folder, 'completions.jsonl'), lines(samples));
  const counters = { seconds: 120 + 60 * seed };
  // Runs of earlier versions have the counters at the top.
  const state = JSON.stringify({ optimizer_step: STEPS, ...(v === 0 ? counters : { counters }) });
  writeFileSync(join(folder, `checkpoint-${STEPS}`, 'training_state.json'), state);
}

let markdown: string;
beforeAll(async () => {
  for (const [v, variant] of VARIANTS.entries())
    for (const seed of SEEDS) writeRun(runFolder(temp, variant, seed), v, seed);
  await writeReport(comparison(temp));
  markdown = readFileSync(join(temp, 'report.md'), 'utf8');
});

describe('numbers', () => {
  it('have the interval of Student’s t', () => {
    // R: t.test(c(0.8, 0.9, 1.0)), t.test(c(1, 2))
    expect(interval([0.8, 0.9, 1])).toMatchObject({
      mean: expect.closeTo(0.9),
      half: expect.closeTo(0.24841, 5),
      n: 3,
    });
    expect(interval([1, 2]).half).toBeCloseTo(6.3531, 5);
    expect(intervalOfSeeds([1, 2])).toEqual({ mean: 1.5, n: 2 });
    expect(interval([5])).toEqual({ mean: 5, n: 1 });
  });

  const line = (name: string) => markdown.split('\n').filter((text) => text.startsWith(`| ${name}`));

  it('are in the table of results, and paired by seed in that of differences', () => {
    const [results, differences] = line('held-out accuracy, greedy');
    expect(results).toBe('| held-out accuracy, greedy, % | 91.0 ± 2.5 | 93.0 ± 2.5 |');
    expect(differences).toBe('| held-out accuracy, greedy, % | <b>+2.0 ± 0.0</b> |');
    expect(line('training time')).toEqual([
      '| training time, minutes | 3.00 ± 2.48 | 3.00 ± 2.48 |',
      '| training time, minutes | 0.00 ± 0.00 |',
    ]);
    expect(line('tokens/s')[0]).toContain('4100 ± 248');
    expect(line('held-out pass@8')[0]).toContain('| 95.0 ± 0.0 | 96.0 ± 0.0 |');
    expect(markdown).not.toContain('pass@64'); // which these runs have not measured
  });

  it('come to a sentence on top', () => {
    const [heading, sentence] = markdown.split('\n\n');
    expect(heading).toMatch(/^# Comparison/);
    expect(sentence).toBe(
      '<b>Held-out accuracy, 3 seeds: drgrpo --critic-type grpo is 2.0 ± 0.0 points above base, more than chance explains.</b>',
    );
  });

  it('name the options that differ, and no others', () => {
    expect(line('criticType')).toEqual(['| criticType | – | grpo |']);
    expect(markdown).not.toMatch(/learningRate|outputDir/);
  });
});

it('escapes whatever a model writes, for Markdown and HTML alike', () => {
  expect(escapeText('a|b\n<b>`*_[x]#~\\$&\u0007')).toBe(
    'a&#124;b<br>&#60;b&#62;&#96;&#42;&#95;&#91;x&#93;&#35;&#126;&#92;&#36;&#38;&#65533;',
  );
  const rows = markdown.split('\n').filter((text) => text.startsWith('|'));
  expect(rows.filter((row) => ![4, 5].includes(row.split('|').length))).toEqual([]);
  expect(markdown).toContain(`--jobs 2 -- --blas 'it'&#92;''s "off"'</code>`);
  expect(escapeText('www.a.b http://c d@e.f')).toBe('www&#46;a.b http&#58;//c d&#64;e.f'); // no links
  expect(markdown).not.toMatch(/<(?!\/?(b|br|code)>)/);
});

it('says that seeds cannot tell variants apart, and shows no interval of two', async () => {
  const of = async (seeds: number[], change: (v: number, seed: number) => number) => {
    const folder = join(temp, `told-${seeds.length}`);
    for (const [v, variant] of VARIANTS.entries()) {
      for (const seed of seeds) writeRun(runFolder(folder, variant, seed), v, seed, change(v, seed));
    }
    await writeReport(comparison(folder, seeds));
    return readFileSync(join(folder, 'report.md'), 'utf8');
  };
  const noisy = await of([0, 1, 2], (v, seed) => (v === 0 ? 0 : [0.05, -0.1, 0.02][seed]));
  expect(noisy).toContain(': drgrpo --critic-type grpo cannot be told from base (1.0 ± 19.7 points above base)');
  const two = await of([0, 1], () => 0);
  expect(two).toContain('2 seeds: drgrpo --critic-type grpo is 2.0 points above base, which may be chance.');
  expect(two).not.toMatch(/± \d/);
});

it('shows of a sweep what came of each value, and which was best by what was trained on', async () => {
  const folder = join(temp, 'swept');
  const sweeps = [{ option: 'learning-rate', values: ['1e-4', '2e-4'] }];
  const variants = VARIANTS.flatMap((name) => sweeps[0].values.map((value) => `${name} --learning-rate ${value}`));
  for (const [v, variant] of variants.entries()) {
    for (const seed of SEEDS) {
      const place = runFolder(folder, variant, seed);
      writeRun(place, v % 2, seed);
      const right = [0.5, 0.7, 0.9, 0.6][v] + 0.01 * seed;
      appendFileSync(join(place, 'metrics.jsonl'), `{"step":${STEPS},"rewards/accuracy/mean":${right}}\n`);
      if (v === 3) writeFileSync(join(place, 'notices.jsonl'), `{"step":7,"rule":"kl","text":"far | away"}\n`);
    }
  }
  await writeReport({ ...comparison(folder), sweeps, variants });
  const report = readFileSync(join(folder, 'report.md'), 'utf8');
  expect(report).toMatch(/^# Sweep of learning-rate: base, drgrpo --critic-type grpo\n/);
  expect(report).toContain(
    '<b>Most right samples in training: base with 2e-4; drgrpo --critic-type grpo with 1e-4.</b>',
  );
  expect(report).toContain('|  | 1e-4 | 2e-4 |\n| --- | --- | --- |\n| base | 51.0 ± 2.5 | <b>71.0 ± 2.5</b> |');
  expect(report).toContain('| drgrpo --critic-type grpo | <b>91.0 ± 2.5</b> | 61.0 ± 2.5 |');
  expect(report).toContain('| drgrpo --critic-type grpo --learning-rate 2e-4 | 1 | 7 | far &#124; away |');
  expect(report).toContain('--sweep learning-rate=1e-4,2e-4 --seeds 0,1,2');
  expect(readFileSync(join(folder, 'curves.svg'), 'utf8')).toContain('Held-out accuracy, greedy');
});

it('covers the seeds that every variant has finished, and waits for the first', async () => {
  const folder = join(temp, 'young');
  writeRun(runFolder(folder, VARIANTS[0], 0), 0, 0);
  await writeReport(comparison(folder));
  expect(existsSync(join(folder, 'report.md'))).toBe(false);
  writeRun(runFolder(folder, VARIANTS[1], 0), 1, 0);
  writeRun(runFolder(folder, VARIANTS[0], 1), 0, 1);
  await writeReport(comparison(folder));
  const text = readFileSync(join(folder, 'report.md'), 'utf8');
  expect(text).toContain('seed 0 (2 of 3 seeds are not complete yet)');
  expect(text).toContain('With fewer than 3 seeds there is no interval');
  expect(text).toContain('1 seed: drgrpo --critic-type grpo is 2.0 points above base, which may be chance.');
  expect(text).toContain('| held-out accuracy, greedy, % | 90.0 | 92.0 |');
});

const CHROME = process.env.CHROME_PATH ?? '/usr/bin/chromium';
const why = existsSync(CHROME) ? '' : ` (skipped: there is no ${CHROME}; CHROME_PATH names another browser)`;

describe.skipIf(why !== '')(`report.html in a browser${why}`, () => {
  let browser: Browser;
  beforeAll(async () => {
    const args = process.getuid?.() === 0 ? ['--no-sandbox'] : [];
    browser = await chromium.launch({ executablePath: CHROME, args });
  });
  afterAll(() => browser?.close());

  /** Opens the report; `problems` are what the browser complains of, and whatever it fetches besides the file. */
  async function open(width: number, colorScheme: 'light' | 'dark'): Promise<{ page: Page; problems: string[] }> {
    const viewport = { width, height: 800 };
    const page = await browser.newPage({ viewport, colorScheme, isMobile: width < 500 });
    const problems: string[] = [];
    const url = pathToFileURL(join(temp, 'report.html')).href;
    page.on('console', (message) => problems.push(message.text()));
    page.on('pageerror', (error) => problems.push(String(error)));
    page.on('request', (request) => request.url() !== url && problems.push(request.url()));
    await page.goto(url);
    return { page, problems };
  }

  const cases = [320, 390, 1280].flatMap((width) =>
    (['light', 'dark'] as const).map((scheme) => [width, scheme] as const),
  );
  it.each(cases)('is drawn and legible at %i px, %s', async (width, scheme) => {
    const { page, problems } = await open(width, scheme);
    const seen = await inspect(page);
    expect(problems).toEqual([]);
    expect(seen.scripts).toBe(0);
    expect(seen.pageWidth).toBeLessThanOrEqual(width);
    expect(seen.background).toBe(scheme === 'dark' ? 'rgb(13, 17, 23)' : 'rgb(255, 255, 255)');
    expect(seen.undescribed).toBe(0);
    // Means and seeds, and pass@k before the first step.
    expect(seen.lines).toHaveLength(VARIANTS.length * PANELS * (1 + SEEDS.length) + 1);
    expect(Math.min(...seen.lines.map((line) => line.width))).toBeGreaterThan(150);
    expect(new Set(seen.lines.map(({ color }) => color)).size).toBe(VARIANTS.length + 1);
    const means = seen.lines.filter(({ thickness }) => thickness === 2);
    expect(means).toHaveLength(VARIANTS.length * PANELS);
    expect(new Set(means.map(({ dash }) => dash)).size).toBe(VARIANTS.length);
    expect(seen.bands).toBe(VARIANTS.length * (PANELS - 2)); // those of two lengths would fill their panels
    expect(seen.scrolling).toEqual([]);
    expect(seen.smallestText).toBeGreaterThanOrEqual(9);
    expect(seen.faintestText).toBeGreaterThanOrEqual(4.5); // WCAG AA
    expect(seen.faintestLine).toBeGreaterThanOrEqual(3); // and its rule for graphics
    expect(seen.cut).toEqual([]);
    await page.close();
  });
});

/** What the browser has made of the page. */
const inspect = (page: Page) =>
  page.$eval('html', (html) => {
    type Node = typeof html; // of the page, whose types this project does without
    const { defaultView: window, scripts, body } = html.ownerDocument;
    const style = (node: Node) => window.getComputedStyle(node);
    const all = (selector: string): Node[] => [...html.querySelectorAll(selector)];
    const luminance = (color: string) => {
      const [r, g, b] = color.match(/[\d.]+/g)!.map((part) => {
        const value = Number(part) / 255;
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const background: string = style(body).backgroundColor;
    const contrast = (color: string) => {
      const [low, high] = [luminance(color), luminance(background)].sort((a, b) => a - b);
      return (high + 0.05) / (low + 0.05);
    };
    const lines = all('.panels .mark-line path').map((path) => ({
      width: Number(path.getBoundingClientRect().width),
      color: String(style(path).stroke),
      dash: String(style(path).strokeDasharray),
      thickness: Number.parseFloat(style(path).strokeWidth),
    }));
    const labels = all('svg text').filter((text) => text.textContent !== '');
    const texts = [...labels, ...all('p, h1, h2, th, td, code, span')];
    const size = (node: Node): number => {
      const svg = node.closest('svg');
      const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
      return scale * Number.parseFloat(style(node).fontSize);
    };
    const isOutside = (text: Node): boolean => {
      const [inner, outer] = [text, text.closest('svg')].map((node: Node) => node.getBoundingClientRect());
      return inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.bottom > outer.bottom + 1;
    };
    return {
      scripts: Number(scripts.length),
      pageWidth: Number(html.scrollWidth),
      background,
      undescribed: all('svg').filter((svg) => svg.getAttribute('role') !== 'img' || !svg.ariaLabel).length,
      lines,
      bands: all('.panels .mark-area path').filter((path) => path.getBoundingClientRect().height > 1).length,
      scrolling: all('.table')
        .filter((table) => table.scrollWidth > table.clientWidth + 1)
        .map((table) => String(table.textContent).slice(0, 80)),
      smallestText: Math.min(...texts.map(size)),
      faintestText: Math.min(...texts.map((node) => contrast(style(node)[node.closest('svg') ? 'fill' : 'color']))),
      faintestLine: Math.min(...lines.map((line) => contrast(line.color))),
      cut: labels.filter(isOutside).map((text) => String(text.textContent)),
    };
  });
