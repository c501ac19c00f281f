/** The page as a document: served, or all of it in one file. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { build, transform } from 'esbuild';
import { colourVariables, DARK, LIGHT } from '../lib/run/document.ts';
import type { Report } from './told.ts';

const PAGE = join(import.meta.dirname, 'page');

/** Its script and its style sheet. */
export type Parts = { script: string; style: string };

/** Bundles the page. */
export async function bundlePage(): Promise<Parts> {
  const css = `${colourVariables(LIGHT, DARK)}\n${await readFile(join(PAGE, 'page.css'), 'utf8')}`;
  const [{ outputFiles }, { code }] = await Promise.all([
    build({
      entryPoints: [join(PAGE, 'page.ts')],
      ...{ bundle: true, write: false, minify: true, format: 'esm', target: 'es2022' },
    }),
    transform(css, { loader: 'css', minify: true }),
  ]);
  return { script: outputFiles[0].text, style: code };
}

const shell = (head: string, body: string): string => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>GRPO runs</title>
${head}
</head>
<body>
<watch-page></watch-page>
<noscript>This page needs JavaScript.</noscript>
${body}
</body>
</html>
`;

/** What the page may load: its own script and style, pictures that are in it, and data from where it came from. */
export const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export const servedPage = shell(
  '<link rel="stylesheet" href="/page.css">\n<script type="module" src="/page.js"></script>',
  '',
);

/** All in one file, which loads nothing. */
export function reportPage({ script, style }: Parts, report: Report): string {
  const hash = (text: string) => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;
  const policy = `default-src 'none'; script-src ${hash(script)}; style-src ${hash(style)}; img-src data:; base-uri 'none'; form-action 'none'`;
  if (/<\/(script|style)/i.test(script + style)) throw new Error('the page would end its own script');
  const data = JSON.stringify(report).replaceAll('<', '\\u003c');
  const body = [
    `<script type="application/json" id="report">${data}</script>`,
    `<script type="module">${script}</script>`,
  ];
  return shell(
    `<meta http-equiv="Content-Security-Policy" content="${policy}">\n<style>${style}</style>`,
    body.join('\n'),
  );
}
