import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { syncCopies } from './sync_copies.ts';

describe('syncCopies', () => {
  let root: string;
  const write = (path: string, text: string) => {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), text);
  };
  const ONE = '/** One. */\nexport const one = () => 1;\n';
  const header = (names: string, from = 'experiment_a/train.ts') =>
    `/**\n * B.\n *\n * Differs from ${from} in: ${names}\n */\n`;
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'copies-'));
    write(
      'experiment_a/train.ts',
      `/** A. */\nimport 'x';\n\n${ONE}\n// Second.\n\nfunction two() {}\n\nconst NAME = 'a';\n`,
    );
  });
  afterEach(() => rmSync(root, { recursive: true }));
  const variant = (text: string, path = 'experiment_b/train.ts') => write(path, text);

  it('leaves a variant alone that differs in what its header names', () => {
    variant(
      `${header('NAME, three.')}import 'y';\n\n${ONE}\nfunction two() {}\n\nconst NAME = 'b';\nconst three = 3;\n`,
    );
    expect(syncCopies(root)).toEqual({ files: new Map(), drifts: [] });
  });

  it('reads a header of several lines, up to its full stop or an empty line', () => {
    const body = `import 'y';\n\n${ONE}\nfunction two() { return 2; }\n\nconst NAME = 'b';\n`;
    variant(`/**\n * Differs from experiment_a/train.ts in: NAME,\n * two.\n *\n * More of it.\n */\n${body}`);
    expect(syncCopies(root).drifts).toEqual([]);
  });

  it('reads the list up to its full stop, also where the paragraph goes on, and refuses one that it cannot read', () => {
    const body = `import 'y';\n\nexport const one = () => 2;\n\nfunction two() {}\n\nconst NAME = 'b';\n`;
    variant(`/**\n * Differs from experiment_a/train.ts in: NAME,\n * one.\n * The last is another.\n */\n${body}`);
    expect(syncCopies(root).drifts).toEqual([]);
    variant(`/**\n * Differs from experiment_a/train.ts in: NAME (and more)\n */\n${body}`);
    expect(() => syncCopies(root)).toThrow('must be a sentence of its own, with nothing but names');
  });

  it('renews what drifted in code or docblock, and puts in what is missing, around what is its own', () => {
    const after = (two: string) => `${header('NAME')}import 'y';\n\n${ONE}\nconst NAME = 'b';${two}\n`;
    variant(`${header('NAME')}import 'y';\n\n/** 1. */\nexport const one = () => 2;\n\nconst NAME = 'b';\n`);
    const { files, drifts } = syncCopies(root);
    expect(drifts.sort()).toEqual([
      'experiment_b/train.ts: one differs from experiment_a/train.ts',
      'experiment_b/train.ts: two is missing, which is in experiment_a/train.ts',
    ]);
    expect(files.get('experiment_b/train.ts')).toBe(
      after('').replace('1;\n', '1;\n\n// Second.\n\nfunction two() {}\n'),
    );
  });

  it('renews a variant of a variant after its original', () => {
    const body = (name: string, one: string) =>
      `import 'y';\n\n${one}\n// Second.\n\nfunction two() {}\n\nconst NAME = '${name}';\n`;
    variant(`${header('NAME', 'experiment_c/train.ts')}${body('b', '/** old */\nconst one = 0;\n')}`);
    variant(`${header('NAME')}${body('c', '/** old */\nconst one = 0;\n')}`, 'experiment_c/train.ts');
    const { files } = syncCopies(root);
    expect(files.get('experiment_b/train.ts')).toBe(`${header('NAME', 'experiment_c/train.ts')}${body('b', ONE)}`);
  });

  it.each([
    ['a name that is nowhere', 'four', '', 'names four, which is nowhere declared'],
    ['a name that is equal', 'NAME, two', "const NAME = 'b';\n", 'names two, which is as in experiment_a/train.ts'],
    [
      'a declaration that it does not name',
      'NAME',
      'const five = 5;\n',
      'five is not in experiment_a/train.ts: name it',
    ],
  ])('refuses a header with %s', (_, names, own, message) => {
    variant(`${header(names)}import 'y';\n\n${ONE}\n// Second.\n\nfunction two() {}\n\n${own}`);
    expect(() => syncCopies(root)).toThrow(message);
  });

  it('refuses an original that is not there', () => {
    variant(header('one', 'experiment_z/train.ts'));
    expect(() => syncCopies(root)).toThrow('experiment_b/train.ts names experiment_z/train.ts as its original');
  });

  it('keeps cells equal to what their metadata names, without the word export, and leaves all else of them alone', () => {
    const file = (source: string | string[], names = ['one']) => {
      const metadata = { copies: { 'experiment_a/train.ts': names } };
      const cells = [
        { cell_type: 'markdown', metadata: {}, source: ['const one = 5;'] },
        { cell_type: 'code', id: 'b', execution_count: 3, metadata, outputs: [{ text: ['1'] }], source },
      ];
      return `${JSON.stringify({ cells, metadata: { a: 1 }, nbformat: 4 }, null, 1)}\n`;
    };
    write('notebooks/a.ipynb', file(['/** 1. */\n', 'const one = () => 2;\n', 'one();']));
    const equal = file(['/** One. */\n', 'const one = () => 1;\n', 'one();']);
    const { files, drifts } = syncCopies(root);
    expect(drifts).toEqual(['notebooks/a.ipynb: one differs from experiment_a/train.ts']);
    expect(files.get('notebooks/a.ipynb')).toBe(equal);
    write('notebooks/a.ipynb', equal);
    expect(syncCopies(root).drifts).toEqual([]);
    write('notebooks/a.ipynb', file(['const one = 1;'], ['three']));
    expect(() => syncCopies(root)).toThrow('declares no three');
    write('notebooks/a.ipynb', file(['const own = 1;']));
    expect(() => syncCopies(root)).toThrow('says that it copies one of experiment_a/train.ts, but declares no one');
  });

  it('finds the copies of this repository equal to their originals', () => {
    expect(syncCopies('.').drifts).toEqual([]);
  });
});
