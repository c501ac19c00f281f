/**
 * Keeps code that is repeated on purpose equal.
 *
 * A variant says in the docblock at its top `Differs from experiment_base/train.ts in: groupAdvantages, grpoLoss.` Every
 * other declaration of the two files must be equal, docblock included. In a notebook, the metadata of a cell says what it
 * copies: `{ "copies": { "experiment_base/train.ts": ["Rollout", "rollout"] } }`; there the word `export` is left out, which
 * the kernel does not take.
 *
 *   npm run sync-copies                rewrites copies that have drifted
 *   npm run sync-copies -- --check     changes nothing; fails if one has
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import ts from 'typescript';
import { runMain } from '../lib/cli/main.ts';
import { examples, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';

/** A top-level declaration. `text` has its docblock; `lead` is what stands between it and the declaration before it. */
type Declaration = { name: string; begin: number; end: number; text: string; lead: string };

/** The declarations of a file or a cell, in their order. */
function declarations(path: string, text: string): Declaration[] {
  const source = ts.createSourceFile(path, text, ts.ScriptTarget.Latest, true);
  return source.statements.flatMap((statement) => {
    const named = ts.isVariableStatement(statement) ? statement.declarationList.declarations[0] : statement;
    const name = (named as { name?: ts.Node }).name?.getText(source);
    if (name === undefined) return [];
    const [begin, end] = [statement.getStart(source, true), statement.end];
    return [{ name, begin, end, text: text.slice(begin, end), lead: text.slice(statement.getFullStart(), begin) }];
  });
}

/** What a variant says of itself: the file that it differs from, and the declarations in which it does. */
function differences(text: string): { from: string; names: string[] } | undefined {
  const header = /^\s*\/\*\*.*?\*\//s.exec(text)?.[0].replace(/\n \*[ ]?/g, '\n') ?? '';
  const [, from, names] = /^Differs from (\S+) in: ([\w$,\s]+?)(?:\.$|$(?!\n\w))/m.exec(header) ?? [];
  if (from === undefined && /^Differs from/m.test(header)) {
    throw new UserError(
      '"Differs from <file> in: <names>." must be a sentence of its own, with nothing but names in its list',
    );
  }
  return from === undefined ? undefined : { from, names: names.split(/[,\s]+/).filter(Boolean) };
}

/** What drifted files should hold, and a line about each drift. */
export type Drifts = { files: Map<string, string>; drifts: string[] };

/**
 * Compares every variant below a folder, and every copy in its notebooks, with the original.
 * @throws {UserError} where a copy cannot be renewed: its original does not exist, or it differs in what it does not say
 */
export function syncCopies(root: string): Drifts {
  const drifts: string[] = [];
  const renewed = new Map<string, string>();
  /** A file as it should be; the original of a variant may be a variant itself, and is renewed first. */
  const renew = (path: string, reader: string): string => {
    const known = renewed.get(path);
    if (known !== undefined) return known;
    const before = readText(root, path, reader);
    renewed.set(path, before);
    const context = { drifts, originals: (from: string) => declarations(from, renew(from, path)) };
    const after = path.endsWith('.ipynb') ? renewCells(path, before, context) : renewVariant(path, before, context);
    renewed.set(path, after);
    return after;
  };
  const folders = readdirSync(root).filter((name) => name.startsWith('experiment_') || name === 'notebooks');
  const paths = folders.flatMap((folder) => readdirSync(join(root, folder)).map((name) => `${folder}/${name}`));
  const files = paths.filter((path) => /\.(ts|ipynb)$/.test(path)).map((path) => [path, renew(path, path)] as const);
  return { files: new Map(files.filter(([path, text]) => text !== readText(root, path, path))), drifts };
}

function readText(root: string, path: string, reader: string): string {
  try {
    return readFileSync(join(root, path), 'utf8');
  } catch {
    throw new UserError(`${reader} names ${path} as its original, but there is no such file`);
  }
}

/** The declarations of an original, by its path; and where drifts are noted. */
type Context = { originals: (from: string) => Declaration[]; drifts: string[] };

/** A variant in which all is equal to the original but for what its header names. */
function renewVariant(path: string, text: string, { originals, drifts }: Context): string {
  const { from, names } = differences(text) ?? {};
  if (from === undefined || names === undefined) return text;
  const theirs = originals(from);
  const own = declarations(path, text);
  const find = (list: Declaration[], name: string) => list.find((declaration) => declaration.name === name);
  for (const name of names) {
    const [original, variant] = [find(theirs, name), find(own, name)];
    if (!original && !variant) throw new UserError(`${path}: its header names ${name}, which is nowhere declared`);
    if (original?.text === variant?.text) {
      throw new UserError(`${path}: its header names ${name}, which is as in ${from}: take it off the list`);
    }
  }
  const stranger = own.find(({ name }) => !names.includes(name) && !find(theirs, name));
  if (stranger) {
    throw new UserError(
      `${path}: ${stranger.name} is not in ${from}: name it in the header, "Differs from ${from} in: …"`,
    );
  }
  let after = text;
  // From the end, so that places further up stay where they are.
  for (const [i, original] of [...theirs.entries()].reverse()) {
    if (names.includes(original.name)) continue;
    const copy = find(own, original.name);
    if (copy?.text === original.text) continue;
    drifts.push(`${path}: ${original.name} ${copy ? 'differs from' : 'is missing, which is in'} ${from}`);
    const above = theirs
      .slice(0, i)
      .reverse()
      .flatMap(({ name }) => find(own, name) ?? [])[0];
    const [begin, end] = copy ? [copy.begin, copy.end] : [above?.end ?? 0, above?.end ?? 0];
    after = after.slice(0, begin) + (copy ? '' : original.lead) + original.text + after.slice(end);
  }
  return after;
}

type Cell = { cell_type: string; metadata?: { copies?: Record<string, string[]> }; source: string | string[] };

/** A notebook in which every copy is as its original, written as Jupyter writes it. */
function renewCells(path: string, text: string, { originals, drifts }: Context): string {
  const { cells, ...rest } = JSON.parse(text) as { cells: Cell[] };
  const renewed = cells.map((cell) => {
    let code = [cell.source].flat().join('');
    for (const [from, names] of Object.entries(cell.metadata?.copies ?? {})) {
      for (const name of names) {
        const original = originals(from).find((declaration) => declaration.name === name);
        if (!original) throw new UserError(`${path}: a cell copies ${name} of ${from}, which declares no ${name}`);
        const copy = declarations('cell.ts', code).find((declaration) => declaration.name === name);
        if (!copy)
          throw new UserError(`${path}: a cell says that it copies ${name} of ${from}, but declares no ${name}`);
        const local = original.text.replace(/^export /m, '');
        if (copy.text === local) continue;
        drifts.push(`${path}: ${name} differs from ${from}`);
        code = code.slice(0, copy.begin) + local + code.slice(copy.end);
      }
    }
    return { ...cell, source: code.split(/(?<=\n)/) };
  });
  const isEqual = renewed.every((cell, i) => cell.source.join('') === [cells[i].source].flat().join(''));
  return isEqual ? text : `${JSON.stringify({ cells: renewed, ...rest }, null, 1)}\n`;
}

async function main(): Promise<void> {
  const command = new Command('sync-copies')
    .description('Renews what variants share with their original, and the copies in notebooks.')
    .option('--check', 'change nothing, fail on drift')
    .addHelpText('after', examples('npm run sync-copies', 'npm run sync-copies -- --check'));
  const { check } = parseOptions(command);
  const { files, drifts } = syncCopies('.');
  if (check && drifts.length > 0) throw new UserError(`${drifts.join('; ')}: run \`npm run sync-copies\``);
  for (const [path, text] of files) writeFileSync(path, text);
  if (drifts.length === 0) console.log('all copies are equal to their originals');
  for (const drift of drifts) console.log(`renewed: ${drift}`);
}

await runMain(import.meta.url, main);
