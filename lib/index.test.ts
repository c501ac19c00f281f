import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import ts from 'typescript';
import { expect, test } from 'vitest';

/** What a file or a cell imports from a place, by the names there. */
const namesFrom = (place: RegExp, code: string): string[] =>
  ts.createSourceFile('code.ts', code, ts.ScriptTarget.Latest, true).statements.flatMap((statement) => {
    const isOurs =
      (ts.isImportDeclaration(statement) || ts.isExportDeclaration(statement)) && statement.moduleSpecifier;
    if (!isOurs || !place.test(statement.moduleSpecifier.getText())) return [];
    const named = ts.isImportDeclaration(statement) ? statement.importClause?.namedBindings : statement.exportClause;
    if (!named || !(ts.isNamedImports(named) || ts.isNamedExports(named))) return [];
    return named.elements.map(({ name, propertyName }) => (propertyName ?? name).getText());
  });

const read = (folder: string, name: RegExp) =>
  readdirSync(folder)
    .filter((file) => name.test(file))
    .map((file) => readFileSync(join(folder, file), 'utf8'));

test('the index has what experiments and notebooks take from lib/, and nothing else', () => {
  const experiments = readdirSync('.').filter((folder) => folder.startsWith('experiment_'));
  const scripts = experiments.flatMap((folder) => read(folder, /^(train|task)\.ts$/));
  const notebooks = read('notebooks', /\.ipynb$/);
  type Cell = { cell_type: string; source: string[] };
  const cells = notebooks.flatMap((text) => (JSON.parse(text) as { cells: Cell[] }).cells);
  const code = [
    ...read('notebooks', /\.ts$/),
    ...cells.filter(({ cell_type }) => cell_type === 'code').map(({ source }) => source.join('')),
  ];
  const taken = [
    ...scripts.flatMap((text) => namesFrom(/lib\//, text)),
    ...code.flatMap((text) => namesFrom(/lib\//, text)),
  ];
  const offered = namesFrom(/./, readFileSync('lib/index.ts', 'utf8'));
  expect(taken.length).toBeGreaterThan(100);
  expect(taken.filter((name) => !offered.includes(name))).toEqual([]);
  // Some are only named, in a text about what else to try.
  const isNamed = (name: string) => notebooks.some((text) => new RegExp(`\\b${name}\\b`).test(text));
  expect(offered.filter((name) => !taken.includes(name) && !isNamed(name))).toEqual([]);
});
