/** A report, once in Markdown and once as a page of HTML: headings, texts, tables and figures. */

/** A part of it. Texts and cells are escaped, and mean the same in Markdown and in HTML; a figure is given by its name. */
export type Block = { heading: string } | { text: string } | { table: string[][] } | { figure: string };

/** What stands for a figure in each of them, by its name. */
export type Figures = Record<string, { markdown: string; html: string }>;

/** Colours on paper, and on a screen that prefers dark ones. */
export const LIGHT = { ink: '#24292f', muted: '#57606a', line: '#d0d7de', grid: '#eaeef2', paper: '#ffffff' };
export const DARK: typeof LIGHT = {
  ...{ ink: '#e6edf3', muted: '#9aa4af', line: '#3d444d', grid: '#262c36', paper: '#0d1117' },
};

/** A text, whatever is in it, as Markdown and as HTML: what may mean something there is written as an entity. */
export const escapeText = (text: string): string =>
  text
    .replace(/[\p{C}]/gu, (c) => (c === '\n' ? c : '\u{fffd}'))
    .replace(/[^\p{L}\p{M}\p{N} \n+=,.:;/()'"?%–-]|(?<=www)\.|:(?=\/)/giu, (c) => `&#${c.codePointAt(0)};`)
    .replaceAll('\n', '<br>');

export function toMarkdown(blocks: Block[], figures: Figures): string {
  const row = (cells: string[]) => `| ${cells.join(' | ')} |`;
  const parts = blocks.map((block, i) => {
    if ('heading' in block) return `${i === 0 ? '#' : '##'} ${block.heading}`;
    if ('table' in block)
      return [row(block.table[0]), row(block.table[0].map(() => '---')), ...block.table.slice(1).map(row)].join('\n');
    return 'text' in block ? block.text : figures[block.figure].markdown;
  });
  return `${parts.join('\n\n')}\n`;
}

/** Variables of a style sheet, `--ink` and so on, light or dark as the reader's screen prefers. */
export const colourVariables = (light: Record<string, string>, dark: Record<string, string>): string => {
  const rule = (colours: Record<string, string>) =>
    `:root { ${Object.entries(colours)
      .map(([name, colour]) => `--${name}: ${colour};`)
      .join(' ')} }`;
  return `${rule(light)}\n@media (prefers-color-scheme: dark) { ${rule(dark)} }`;
};

const STYLE = `
${colourVariables(LIGHT, DARK)}
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 1160px; padding: 8px 14px 40px; background: var(--paper); color: var(--ink); }
body { font: 15px/1.5 system-ui, Helvetica, Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 22px; }
h2 { font-size: 18px; margin-top: 32px; }
p { max-width: 80ch; }
code { font-size: 13px; }
figure { margin: 0; }
figure svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 5px 18px 5px 0; text-align: left; vertical-align: top; }
th, td { min-width: 90px; max-width: 420px; }
td:has(br) { min-width: 230px; }
td + td:not(:has(br)) { white-space: nowrap; }
@media (max-width: 600px) {
  table { width: 100%; font-size: 13px; }
  th, td, td:has(br) { min-width: 0; padding-right: 8px; }
  td + td:not(:has(br)) { white-space: normal; }
}
`;

/** @param page.style - rules for its figures, beside those of every report */
export function toHtml(
  blocks: Block[],
  figures: Figures,
  { title, style = '' }: { title: string; style?: string },
): string {
  const row = (tag: string) => (cells: string[]) =>
    `<tr>${cells.map((cell) => `<${tag}>${cell}</${tag}>`).join('')}</tr>`;
  const parts = blocks.map((block, i) => {
    if ('heading' in block) return i === 0 ? `<h1>${block.heading}</h1>` : `<h2>${block.heading}</h2>`;
    if ('text' in block) return `<p>${block.text}</p>`;
    if ('figure' in block) return figures[block.figure].html;
    const [head, ...rows] = block.table;
    return `<div class="table"><table>\n${row('th')(head)}\n${rows.map(row('td')).join('\n')}\n</table></div>`;
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<style>${STYLE}${style}</style>
</head>
<body>
${parts.join('\n')}
</body>
</html>
`;
}
