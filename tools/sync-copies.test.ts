import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { syncCopies } from './sync-copies.ts';

describe('syncCopies', () => {
  let root: string;
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'copies-'));
    for (const folder of ['experiment_a', 'experiment_b']) mkdirSync(join(root, folder));
    writeFileSync(
      join(root, 'experiment_a/train.ts'),
      '/** One. */\nexport const one = () => 1;\n\nfunction two() {}\n',
    );
  });
  afterEach(() => rmSync(root, { recursive: true }));
  const copy = (text: string) => writeFileSync(join(root, 'experiment_b/train.ts'), text);

  it('leaves an equal copy alone', () => {
    copy('// Copied from experiment_a/train.ts: one\n/** One. */\nexport const one = () => 1;\n');
    expect(syncCopies(root)).toEqual({ files: new Map(), drifts: [] });
  });

  it('finds drift in code and in docblock, and gives back the source around what is its own', () => {
    copy(
      'const own = 0;\n\n// Copied from experiment_a/train.ts: one\n/** 1. */\nexport const one = () => 2;\n\n// Copied from experiment_a/train.ts: two\nfunction two() { return 2; }\n\nown;\n',
    );
    const { files, drifts } = syncCopies(root);
    expect(drifts).toHaveLength(2);
    expect(files.get('experiment_b/train.ts')).toBe(
      'const own = 0;\n\n// Copied from experiment_a/train.ts: one\n/** One. */\nexport const one = () => 1;\n\n// Copied from experiment_a/train.ts: two\nfunction two() {}\n\nown;\n',
    );
  });

  it('keeps the cells of notebooks equal, without the word export, and leaves everything else of them alone', () => {
    mkdirSync(join(root, 'notebooks'));
    const file = (source: string | string[]) => {
      const cells = [
        { cell_type: 'markdown', source: ['// Copied from experiment_a/train.ts: one'] },
        { cell_type: 'code', id: 'b', execution_count: 3, outputs: [{ text: ['1'] }], source },
      ];
      return `${JSON.stringify({ cells, metadata: { a: 1 }, nbformat: 4 }, null, 1)}\n`;
    };
    const marker = '// Copied from experiment_a/train.ts: one\n';
    writeFileSync(join(root, 'notebooks/a.ipynb'), file([marker, '/** 1. */\n', 'const one = () => 2;\n', 'one();']));
    const equal = file([marker, '/** One. */\n', 'const one = () => 1;\n', 'one();']);
    const { files, drifts } = syncCopies(root);
    expect(drifts).toEqual(['notebooks/a.ipynb: one differs from experiment_a/train.ts: one']);
    expect(files.get('notebooks/a.ipynb')).toBe(equal);
    writeFileSync(join(root, 'notebooks/a.ipynb'), equal);
    expect(syncCopies(root).drifts).toEqual([]);
  });

  it('refuses a marker whose source is gone', () => {
    copy('// Copied from experiment_a/train.ts: three\nconst three = 3;\n');
    expect(() => syncCopies(root)).toThrow('declares no three');
    copy('/** One. */\n// Copied from experiment_a/train.ts: one\nexport const one = () => 1;\n');
    expect(() => syncCopies(root)).toThrow('belongs to no declaration: put it above the docblock');
    copy('// Copied from experiment_c/train.ts: one\nconst one = 1;\n');
    expect(() => syncCopies(root)).toThrow('no such file');
  });

  it('finds the copies of this repository equal to their sources', () => {
    expect(syncCopies('.').drifts).toEqual([]);
  });
});
