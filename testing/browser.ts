/** For tests of pages in a real browser. */
import { existsSync } from 'node:fs';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';

const CHROME = process.env.CHROME_PATH ?? '/usr/bin/chromium';

/** Why there is no browser here; empty if there is one. */
export const noBrowser = existsSync(CHROME)
  ? ''
  : ` (skipped: there is no ${CHROME}; CHROME_PATH names another browser)`;

/** @param more - arguments of its command line */
export const startBrowser = (more: string[] = [], env: Record<string, string> = {}): Promise<Browser> => {
  const args = [...(process.getuid?.() === 0 ? ['--no-sandbox'] : []), ...more];
  return chromium.launch({ executablePath: CHROME, args, env: { ...process.env, ...env } });
};

export type Opening = { width?: number; colorScheme?: 'light' | 'dark' };

/** Opens an address; `problems` are what the browser complains of, and whatever it asks of other places. */
export async function openPage(
  browser: Browser | BrowserContext,
  url: string,
  { width = 1440, colorScheme = 'light' }: Opening = {},
): Promise<{ page: Page; problems: string[] }> {
  const page = await browser.newPage();
  await page.setViewportSize({ width, height: 900 });
  await page.emulateMedia({ colorScheme });
  const problems: string[] = [];
  page.on('console', (message) => problems.push(message.text()));
  page.on('pageerror', (error) => problems.push(String(error)));
  page.on('dialog', (dialog) => problems.push(dialog.message()));
  page.on('request', (request) => {
    const isOwn = request.url().startsWith(new URL('.', url).href) || /^(data|blob):/.test(request.url());
    if (!isOwn) problems.push(request.url());
  });
  await page.goto(url);
  return { page, problems };
}

/** What is wider than the page, and text with too little contrast (WCAG AA), whatever is behind it. */
export const look = (page: Page) =>
  page.evaluate<{ overflow: string[]; faint: string[]; background: string }>(`(() => {
    const channels = (color) => {
      const numbers = color.match(/-?[\\d.]+(e-?\\d+)?/g).map(Number);
      const [r, g, b, alpha = 1] = color.startsWith('color(') ? [...numbers.slice(0, 3).map((x) => 255 * x), numbers[3]] : numbers;
      return [r, g, b, alpha];
    };
    const over = ([r, g, b, alpha], below) => [r, g, b].map((x, i) => alpha * x + (1 - alpha) * below[i]);
    const behind = (node) => {
      const below = node.parentElement ? behind(node.parentElement) : [255, 255, 255];
      return over(channels(getComputedStyle(node).backgroundColor), below);
    };
    const luminance = (color) => {
      const [r, g, b] = color.map((x) => (x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
      const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
      return (high + 0.05) / (low + 0.05);
    };
    const faint = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
      const node = text.parentElement;
      if (text.data.trim() === '' || node.getClientRects().length === 0 || node.closest('script, noscript')) continue;
      const ground = behind(node);
      const ratio = contrast(over(channels(getComputedStyle(node).color), ground), ground);
      if (!(ratio >= 4.5)) faint.push(ratio.toFixed(2) + ' ' + node.className + ' ' + text.data.slice(0, 20));
    }
    const wide = [...document.querySelectorAll('body *')].filter((node) => {
      const { right, left } = node.getBoundingClientRect();
      return (right > innerWidth + 0.5 || left < -0.5) && node.getClientRects().length > 0;
    });
    const overflow = document.documentElement.scrollWidth > innerWidth ? wide.map((node) => node.outerHTML.slice(0, 80)) : [];
    return { overflow, faint, background: getComputedStyle(document.body).backgroundColor };
  })()`);
