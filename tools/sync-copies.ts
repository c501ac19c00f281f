/**
 * Keeps code that is repeated on purpose equal. A declaration below the line
 *
 *   // Copied from experiment_base/train.ts: groupAdvantages
 *
 * is replaced by the declaration of that name in that file, docblock included.
 *
 *   npm run sync-copies                rewrites copies that have drifted
 *   npm run sync-copies -- --check     changes nothing; fails if one has
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import ts from 'typescript';
import { parseOptions, runMain, UserError } from '../lib/index.ts';

const MARKER = /^\/\/ Copied from (\S+): (\w+)$/m;

type Declaration = { name: string; begin: number; end: number; text: string; marker: RegExpExecArray | null };

/** Top-level declarations of a file: their names, their text with docblock, and the marker above them. */
function declarations(path: string, text: string): Declaration[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  return source.statements.flatMap((statement) => {
    const named = ts.isVariableStatement(statement) ? statement.declarationList.declarations[0] : statement;
    const name = (named as { name?: ts.Node }).name?.getText(source);
    if (name === undefined) return [];
    const begin = statement.getStart(source, true);
    const marker = MARKER.exec(text.slice(statement.getFullStart(), begin));
    return [{ name, begin, end: statement.end, text: text.slice(begin, statement.end), marker }];
  });
}

/**
 * Compares every marked declaration below a folder with its source.
 * @returns what each file with drift should hold, and a line about each drift
 * @throws {UserError} if a marker names a file or declaration that does not exist
 */
export function syncCopies(root: string): { files: Map<string, string>; drifts: string[] } {
  const files = new Map<string, string>();
  const drifts: string[] = [];
  const folders = readdirSync(root).filter((name) => name.startsWith('experiment_'));
  const paths = folders.flatMap((folder) => readdirSync(join(root, folder)).map((name) => `${folder}/${name}`));
  for (const path of paths.filter((path) => path.endsWith('.ts'))) {
    const before = readFileSync(join(root, path), 'utf8');
    let after = before;
    // From the end, so that places further up stay where they are.
    for (const copy of declarations(path, before).toReversed()) {
      if (copy.marker === null) continue;
      const [, from, name] = copy.marker;
      const original = readSource(root, path, from).find((declaration) => declaration.name === name);
      if (!original) throw new UserError(`${path}: "Copied from ${from}: ${name}", but ${from} declares no ${name}`);
      if (original.text === copy.text) continue;
      drifts.push(`${path}: ${copy.name} differs from ${from}: ${name}`);
      after = after.slice(0, copy.begin) + original.text + after.slice(copy.end);
    }
    if (after !== before) files.set(path, after);
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
  const command = new Command('sync-copies').option('--check', 'change nothing, fail on drift', false);
  const { check } = parseOptions(command);
  const { files, drifts } = syncCopies('.');
  if (check && drifts.length > 0) {
    throw new UserError(`${drifts.join('; ')}: run \`npm run sync-copies\``);
  }
  for (const [path, text] of files) writeFileSync(path, text);
  console.log(drifts.length === 0 ? 'all copies are equal to their sources' : `rewritten: ${drifts.join('; ')}`);
}

await runMain(import.meta.url, main);
