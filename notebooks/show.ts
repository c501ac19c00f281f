/** What the notebooks show: tables, charts, and who wrote what. Importing this goes to the repository's root. */
import { join } from 'node:path';
import { display } from 'tslab';
import { draw, STYLE } from '../lib/dist/index.js';

// Paths are those that the scripts use.
process.chdir(join(__dirname, '..'));

type Cell = string | number | boolean | null | undefined;

/** Shows rows as a table; the keys are its head. Texts keep their lines, numbers have four digits. */
export function table(rows: Record<string, Cell>[]): void {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value: Cell) =>
    typeof value === 'number'
      ? `<td ${aligned('right')}>${Number.isInteger(value) ? value : Number(value.toPrecision(4))}</td>`
      : `<td ${aligned('left')}>${inHtml(String(value ?? '')).replaceAll('\n', '<br>')}</td>`;
  const head = `<tr>${names.map((name) => `<th ${aligned('left')}>${inHtml(name)}</th>`).join('')}</tr>`;
  const body = rows.map((row) => `<tr>${names.map((name) => cell(row[name])).join('')}</tr>`);
  display.html(`<table>${head}${body.join('')}</table>`);
}

/** As a style for Jupyter, whose own would win, and as an attribute for code hosts, which remove styles. */
const aligned = (side: string): string => `align="${side}" style="text-align: ${side}"`;

const inHtml = (text: string): string =>
  text.replace(/[&<>]/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;' })[c]!);

/** Shows a chart that is written in the language of Vega-Lite (https://vega.github.io/vega-lite). */
export async function chart(specification: object): Promise<void> {
  display.svg(await draw({ ...STYLE, ...specification } as Parameters<typeof draw>[0]));
}

/** A token, and who wrote it: the prompt, the policy, or a tool. */
export type WrittenToken = { text: string; by: 'prompt' | 'policy' | 'tool' };

const COLORS = { prompt: '#eaeef2', policy: '#b6e3ff', tool: '#ffd8b5' };
const [CHARACTER, LINE, WIDTH] = [7.3, 46, 860]; // of 12-pixel letters of equal width

/** Shows tokens as boxes, coloured by who wrote them, with the mask below: 1 where the policy is trained. */
export function tokens(written: WrittenToken[]): void {
  let [x, y] = [0, 24];
  const boxes = written.map(({ text, by }) => {
    const shown = text.replaceAll(' ', '␣').replaceAll('\n', '⏎');
    const width = CHARACTER * [...shown].length + 6;
    if (x + width > WIDTH) [x, y] = [0, y + LINE];
    const center = x + width / 2;
    const box =
      `<rect x="${x}" y="${y}" width="${width - 2}" height="20" rx="3" fill="${COLORS[by]}"/>` +
      `<text x="${center - 1}" y="${y + 14}">${inHtml(shown)}</text>` +
      `<text x="${center - 1}" y="${y + 33}" fill="#57606a">${by === 'policy' ? 1 : 0}</text>`;
    x += width;
    return box;
  });
  const legend = (Object.keys(COLORS) as WrittenToken['by'][]).map((by, i) => {
    const left = 110 * i;
    return `<rect x="${left}" y="0" width="14" height="14" fill="${COLORS[by]}"/><text x="${left + 20}" y="11" text-anchor="start">${by}</text>`;
  });
  const size = `width="${WIDTH}" height="${y + LINE}"`;
  display.svg(
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} viewBox="0 0 ${WIDTH} ${y + LINE}" font-family="monospace" font-size="12" text-anchor="middle"><rect ${size} fill="white"/>${legend.join('')}${boxes.join('')}</svg>`,
  );
}
