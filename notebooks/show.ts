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

/** Shows tokens as boxes, coloured by who wrote them, with the mask below: 1 where the policy is trained. */
export function tokens(written: WrittenToken[]): void {
  const legend = Object.entries(COLORS)
    .map(([text, fill]) => ({ text, fill }))
    .filter(({ text }) => written.some(({ by }) => by === text));
  const row = written.map(({ text, by }) => ({ text, fill: COLORS[by], below: by === 'policy' ? '1' : '0' }));
  boxes([row], legend, 46);
}

/**
 * Shows the tokens of completions, a row each, shaded by a value: blue above 0 and orange below, the deeper the further from it.
 * @param most - the value that is as deep as it gets
 */
export function shaded(rows: { text: string; value: number }[][], most: number): void {
  const fill = (value: number) => {
    const depth = Math.min(1, Math.abs(value) / most);
    const [red, green, blue] = (value < 0 ? [255, 150, 60] : [70, 160, 255]).map((c) =>
      Math.round(255 + (c - 255) * depth),
    );
    return `rgb(${red},${green},${blue})`;
  };
  const ends = rows.flat().some(({ value }) => value < 0) ? [-most, 0, most] : [0, most];
  const legend = ends.map((value) => ({
    text: String(Number(value.toPrecision(2))).replace('-', '−'),
    fill: fill(value),
  }));
  boxes(
    rows.map((row) => row.map(({ text, value }) => ({ text, fill: fill(value), below: '' }))),
    legend,
    26,
  );
}

type Box = { text: string; fill: string };
const [CHARACTER, WIDTH, MARGIN] = [7.3, 860, 6]; // of 12-pixel letters of equal width

/** Boxes from left to right, each row on a new line, and in as many lines as it takes. */
function boxes(rows: (Box & { below: string })[][], legend: Box[], lineHeight: number): void {
  const drawn: string[] = [];
  let y = 24 - lineHeight;
  for (const row of rows) {
    let x = WIDTH;
    for (const { text, fill, below } of row) {
      const shown = text.replaceAll(' ', '␣').replaceAll('\n', '⏎');
      const width = CHARACTER * [...shown].length + 6;
      if (x + width > WIDTH) [x, y] = [0, y + lineHeight];
      const center = x + width / 2 - 1;
      drawn.push(
        `<rect x="${x}" y="${y}" width="${width - 2}" height="20" rx="3" fill="${fill}"/>`,
        `<text x="${center}" y="${y + 14}">${inHtml(shown)}</text>`,
        below && `<text x="${center}" y="${y + 33}" fill="#57606a">${below}</text>`,
      );
      x += width;
    }
  }
  const key = legend.map(({ text, fill }, i) => {
    const left = 110 * i + 1;
    return `<rect x="${left}" y="1" width="14" height="14" fill="${fill}" stroke="#d0d7de"/><text x="${left + 20}" y="12" text-anchor="start">${text}</text>`;
  });
  const size = `width="${WIDTH + 2 * MARGIN}" height="${y + lineHeight + 2 * MARGIN}"`;
  const box = `${-MARGIN} ${-MARGIN} ${WIDTH + 2 * MARGIN} ${y + lineHeight + 2 * MARGIN}`;
  display.svg(
    `<svg xmlns="http://www.w3.org/2000/svg" ${size} viewBox="${box}" font-family="monospace" font-size="12" text-anchor="middle"><rect x="${-MARGIN}" y="${-MARGIN}" ${size} fill="white"/>${key.join('')}${drawn.join('')}</svg>`,
  );
}
