/**
 * Keeps code that is repeated on purpose equal. A declaration below the line
 *
 *   // Copied from experiment_base/train.ts: groupAdvantages
 *
 * is replaced by the declaration of that name in that file, docblock included. The cells of notebooks are kept equal in the
 * same way; there the word `export` is left out, which their kernel does not take.
 *
 *   npm run sync-copies                rewrites copies that have drifted
 *   npm run sync-copies -- --check     changes nothing; fails if one has
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import ts from 'typescript';
import { examples, parseOptions, runMain, UserError } from '../lib/index.ts';

const MARKER = /^\/\/ Copied from (\S+): (\w+)$/m;

type Declaration = {
  name: string;
  begin: number;
  end: number;
  text: string;
  /** the same without the word `export` */
  local: string;
  marker: RegExpExecArray | null;
};

/** Top-level declarations of a file: their names, their text with docblock, and the marker above them. */
function declarations(path: string, text: string): Declaration[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  return source.statements.flatMap((statement) => {
    const named = ts.isVariableStatement(statement) ? statement.declarationList.declarations[0] : statement;
    const name = (named as { name?: ts.Node }).name?.getText(source);
    if (name === undefined) return [];
    const begin = statement.getStart(source, true);
    const marker = MARKER.exec(text.slice(statement.getFullStart(), begin));
    const own = statement.getStart(source);
    const local = text.slice(begin, own) + text.slice(own, statement.end).replace(/^export /, '');
    return [{ name, begin, end: statement.end, text: text.slice(begin, statement.end), local, marker }];
  });
}

type Notebook = { cells: { cell_type: string; source: string | string[] }[] };

/** Applies `change` to each cell of code in a notebook, and gives the whole notebook as Jupyter writes it. */
function changeCells(notebook: string, change: (code: string) => string): string {
  const { cells, ...rest } = JSON.parse(notebook) as Notebook;
  const changed = cells.map((cell) => {
    if (cell.cell_type !== 'code') return cell;
    const code = change([cell.source].flat().join(''));
    return { ...cell, source: code.split(/(?<=\n)/) };
  });
  return `${JSON.stringify({ cells: changed, ...rest }, null, 1)}\n`;
}

/**
 * Compares every marked declaration below a folder with its source.
 * @returns what each file with drift should hold, and a line about each drift
 * @throws {UserError} if a marker names a file or declaration that does not exist, or stands above none
 */
export function syncCopies(root: string): { files: Map<string, string>; drifts: string[] } {
  const files = new Map<string, string>();
  const drifts: string[] = [];
  /** A text with its copies renewed. */
  const renew = (path: string, before: string, version: 'text' | 'local'): string => {
    let after = before;
    const found = declarations(path, before);
    const markers = before.match(new RegExp(MARKER, 'gm')) ?? [];
    const idle = markers.find((line) => found.every(({ marker }) => marker?.[0] !== line));
    if (idle) throw new UserError(`${path}: "${idle.slice(3)}" belongs to no declaration: put it above the docblock`);
    // From the end, so that places further up stay where they are.
    for (const copy of found.toReversed()) {
      if (copy.marker === null) continue;
      const [, from, name] = copy.marker;
      const original = readSource(root, path, from).find((declaration) => declaration.name === name);
      if (!original) throw new UserError(`${path}: "Copied from ${from}: ${name}", but ${from} declares no ${name}`);
      if (original[version] === copy.text) continue;
      drifts.push(`${path}: ${copy.name} differs from ${from}: ${name}`);
      after = after.slice(0, copy.begin) + original[version] + after.slice(copy.end);
    }
    return after;
  };
  const folders = readdirSync(root).filter((name) => name.startsWith('experiment_') || name === 'notebooks');
  for (const path of folders.flatMap((folder) => readdirSync(join(root, folder)).map((name) => `${folder}/${name}`))) {
    if (!/\.(ts|ipynb)$/.test(path)) continue;
    const before = readFileSync(join(root, path), 'utf8');
    const known = drifts.length;
    const after = path.endsWith('.ts')
      ? renew(path, before, 'text')
      : changeCells(before, (code) => renew(path, code, 'local'));
    if (drifts.length > known) files.set(path, after);
  }
  return { files, drifts };
}

function readSource(root: string, path: string, from: string): Declaration[] {
  try {
    return declarations(from, readFileSync(join(root, from), 'utf8'));
  } catch {
    throw new UserError(`${path}: "Copied from ${from}", but there is no such file`);
  }
}

async function main(): Promise<void> {
  const command = new Command('sync-copies')
    .description('Renews the copies that say "Copied from", in experiments and notebooks.')
    .option('--check', 'change nothing, fail on drift')
    .addHelpText('after', examples('npm run sync-copies', 'npm run sync-copies -- --check'));
  const { check } = parseOptions(command);
  const { files, drifts } = syncCopies('.');
  if (check && drifts.length > 0) {
    throw new UserError(`${drifts.join('; ')}: run \`npm run sync-copies\``);
  }
  for (const [path, text] of files) writeFileSync(path, text);
  if (drifts.length === 0) console.log('all copies are equal to their sources');
  for (const drift of drifts) console.log(`renewed: ${drift.replace('differs', 'differed')}`);
}

await runMain(import.meta.url, main);
