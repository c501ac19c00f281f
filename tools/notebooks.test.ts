import { chmodSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import ts from 'typescript';
import { afterAll, describe, expect, it, test, vi } from 'vitest';
import { NODE, runProcess } from '../testing/processes.ts';
import { execute, executeAll, mistakeInNotebook, type Notebook } from './notebooks.ts';

const LATEST = ts.ScriptTarget.Latest;
const files = readdirSync('notebooks').filter((file) => file.endsWith('.ipynb'));

describe.each(files)('notebooks/%s', (file) => {
  const notebook = JSON.parse(readFileSync(`notebooks/${file}`, 'utf8')) as Notebook & {
    metadata: { kernelspec: { name: string } };
  };
  const code = notebook.cells.filter(({ cell_type }) => cell_type === 'code');

  it('is committed as it was executed, from top to bottom, without a mistake', () => {
    expect(notebook.metadata.kernelspec.name).toBe('tslab');
    expect(mistakeInNotebook(notebook)).toBeUndefined();
    expect(code.map(({ execution_count }) => execution_count)).toEqual(code.map((_, i) => i + 1));
  });

  it('declares nothing in the place of what it imports', () => {
    const sources = code.map(({ source }) => ts.createSourceFile('cell.ts', [source].flat().join(''), LATEST, true));
    const imported = new Set<string>();
    const hidden: string[] = [];
    for (const statement of sources.flatMap((source) => [...source.statements])) {
      const { namedBindings, name } = (ts.isImportDeclaration(statement) && statement.importClause) || {};
      if (name) imported.add(name.text);
      if (namedBindings && ts.isNamedImports(namedBindings)) {
        for (const { name } of namedBindings.elements) imported.add(name.text);
      }
      const declared = ts.isVariableStatement(statement)
        ? statement.declarationList.declarations.map(({ name }) => name.getText())
        : [(statement as { name?: ts.Node }).name?.getText()];
      hidden.push(...(declared.filter((name) => name !== undefined && imported.has(name)) as string[]));
    }
    expect(imported.size).toBeGreaterThan(5);
    expect(hidden).toEqual([]);
  });

  it('knows every name that it uses', () => {
    const text = code.map(({ source = [] }) => [source].flat().join('')).join('\n');
    const options = { target: LATEST, lib: ['lib.esnext.d.ts', 'lib.dom.d.ts'], noResolve: true, types: [] };
    const host = ts.createCompilerHost(options);
    const fromDisk = host.getSourceFile;
    host.getSourceFile = (name, ...rest) =>
      name === 'cells.ts'
        ? ts.createSourceFile(name, `${text}\nexport {}; declare let process, Buffer;`, LATEST)
        : fromDisk(name, ...rest);
    const program = ts.createProgram(['cells.ts'], options, host);
    const found = program.getSemanticDiagnostics(program.getSourceFile('cells.ts'));
    const unknown = found.filter(({ messageText }) => /^Cannot find name/.test(`${messageText}`));
    expect(unknown.map(({ messageText }) => messageText)).toEqual([]);
  });

  it('shows tables and pictures', () => {
    const kinds = code.flatMap(({ outputs = [] }) => outputs.flatMap(({ data = {} }) => Object.keys(data)));
    expect(kinds).toContain('text/html');
    expect(kinds).toContain('image/svg+xml');
  });
});

/** What a file or a cell does within its `for await`, statement by statement. */
function loopOf(code: string): string[] {
  const find = (node: ts.Node): ts.Statement | undefined =>
    ts.isForOfStatement(node) && node.awaitModifier ? node.statement : ts.forEachChild(node, find);
  const loop = find(ts.createSourceFile('code.ts', code, LATEST, true)) as ts.Block | undefined;
  return loop?.statements.map((statement) => statement.getText().replace(/\s+/g, ' ')) ?? [];
}

/** Those that are about several experiments, and train in processes of their own. */
const OF_SEVERAL = ['compare.ipynb', 'reward_lab.ipynb', 'variants.ipynb'];

test.each(files.filter((file) => !OF_SEVERAL.includes(file)))('notebooks/%s has the loop of its script', (file) => {
  const { cells } = JSON.parse(readFileSync(`notebooks/${file}`, 'utf8')) as Notebook;
  const code = cells.filter(({ cell_type }) => cell_type === 'code').map(({ source = [] }) => [source].flat().join(''));
  const script = loopOf(readFileSync(`experiment_${file.replace('.ipynb', '')}/train.ts`, 'utf8'));
  expect(script.length).toBeGreaterThan(5);
  // A notebook may look on, as it draws curves.
  expect(code.flatMap(loopOf).filter((statement) => script.includes(statement))).toEqual(script);
});

test('a mistake is what is on stderr, where the kernel reports it', () => {
  const cell = (name: string) => ({
    cell_type: 'code',
    outputs: [{ output_type: 'stream', name, text: ['no', ' x\n'] }],
  });
  expect(mistakeInNotebook({ cells: [cell('stdout')] })).toBeUndefined();
  expect(mistakeInNotebook({ cells: [{ cell_type: 'markdown' }, cell('stderr')] })).toBe('cell 2: no x');
  expect(mistakeInNotebook({ cells: [{ cell_type: 'code', outputs: [{ output_type: 'error' }] }] })).toBe(
    'cell 1: an error',
  );
});

/** The virtual environment of whoever runs the tests would be found before what they bring. */
const hasOwn = existsSync('.venv');

test.skipIf(hasOwn).each([
  ['--execute --only bas', 'there is no notebook "bas": there are async, base, '],
  ['--execute', '/nowhere/python has no nbconvert, which executes notebooks: `apt-get install '],
  ['--only base', '--only goes with --execute'],
  ['', 'no Jupyter was found: `python3 -m venv .venv && .venv/bin/pip install jupyterlab` brings one'],
  ['--in-place', '--in-place goes with --execute'],
  ['--execute --allow-root', "unknown option '--allow-root': Jupyter's own go with `npm run notebooks` alone"],
])('notebooks.ts %s says what is missing', async (options, message) => {
  const env = { PATH: '/nowhere', PYTHON: '/nowhere/python' };
  const { code, stderr } = await runProcess([...NODE, 'tools/notebooks.ts', ...options.split(' ').filter(Boolean)], {
    env,
  });
  expect(stderr).toContain(`error: ${message}`);
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(code).toBe(2);
});

const temp = mkdtempSync(join(tmpdir(), 'notebooks-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** A program that does what a shell script says. */
function program(name: string, script: string): string {
  writeFileSync(join(temp, name), `#!/bin/sh\n${script}\n`);
  chmodSync(join(temp, name), 0o755);
  return join(temp, name);
}

test.skipIf(process.platform === 'win32')(
  'options that are not ours are passed on to Jupyter, after ours',
  async () => {
    program('jupyter', 'echo "$@"');
    const more = ['--allow-root', '--port', '9999', '--ServerApp.root_dir=/elsewhere'];
    const { code, stdout, stderr } = await runProcess([...NODE, 'tools/notebooks.ts', ...more], {
      env: { PATH: temp },
    });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toBe(`lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks ${more.join(' ')}\n`);
  },
);

test.skipIf(process.platform === 'win32')(
  'an executed notebook is written where it is asked for, not over the committed one',
  async () => {
    // nbconvert's: … --output-dir <scratch> <file>
    const python = program('python', 'for word; do scratch=$file; file=$word; done; cp "$file" "$scratch"');
    const committed = readFileSync('notebooks/ddp.ipynb', 'utf8');
    vi.spyOn(console, 'log').mockImplementation(() => {});
    await execute(python, 'ddp', join(temp, 'executed'));
    expect(JSON.parse(readFileSync(join(temp, 'executed', 'ddp.ipynb'), 'utf8'))).toEqual(JSON.parse(committed));
    expect(readFileSync('notebooks/ddp.ipynb', 'utf8')).toBe(committed);
  },
);

test.skipIf(process.platform === 'win32')(
  'two notebooks are executed side by side; after a mistake none is begun, and what is under way is finished',
  async () => {
    const python = program(
      'python',
      `for word; do scratch=$file; file=$word; done
      touch ${temp}/begun-$$
      for try in $(seq 100); do [ $(ls ${temp}/begun-* | wc -l) -ge 2 ] && break; sleep .05; done
      [ $(ls ${temp}/begun-* | wc -l) -eq 2 ] || exit 3
      case $file in *base*) echo it broke >&2; exit 1;; esac
      sleep .2; cp "$file" "$scratch"`,
    );
    vi.spyOn(console, 'log').mockImplementation(() => {});
    vi.spyOn(console, 'error').mockImplementation(() => {});
    const folder = join(temp, 'side-by-side');
    const message = 'notebooks/base.ipynb could not be executed: it broke';
    await expect(executeAll(python, ['base', 'ddp', 'drgrpo'], folder)).rejects.toThrow(message);
    expect(readdirSync(folder)).toEqual(['ddp.ipynb']);
  },
);
