import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { mend, removeFolder, writeFileAtomically, writeFolderAtomically } from './folders.ts';

let folder: string;
let target: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'folders-'));
  target = join(folder, 'model');
});
afterEach(() => rmSync(folder, { recursive: true }));

const put = (text: string) => async (dir: string) => {
  mkdirSync(join(dir, 'deep'));
  writeFileSync(join(dir, 'deep', 'weights'), text);
};
const weights = () => readFileSync(join(target, 'deep', 'weights'), 'utf8');

it('shows a folder only when it is complete', async () => {
  await writeFolderAtomically(target, async (dir) => {
    await put('new')(dir);
    expect(existsSync(target)).toBe(false);
  });
  expect(weights()).toBe('new');
  expect(readdirSync(folder)).toEqual(['model']);
});

it('replaces a folder, with nothing left of the old one', async () => {
  await writeFolderAtomically(target, async (dir) => writeFileSync(join(dir, 'old'), ''));
  await writeFolderAtomically(target, put('new'));
  expect(readdirSync(target)).toEqual(['deep']);
  expect(readdirSync(folder)).toEqual(['model']);
});

it('keeps the old folder if writing fails, and can be tried again', async () => {
  await writeFolderAtomically(target, put('old'));
  const failing = writeFolderAtomically(target, async (dir) => {
    await put('half')(dir);
    throw new Error('disk full');
  });
  await expect(failing).rejects.toThrow('disk full');
  expect(weights()).toBe('old');
  await writeFolderAtomically(target, put('new'));
  expect(weights()).toBe('new');
});

it('mends what a kill has left at any point', () => {
  const make = (name: string, text: string) => put(text)(join(folder, mkdirSync(join(folder, name)) ?? name));
  make('.model.replaced', 'old'); // killed between the two renames
  make('.model.partial', 'new');
  writeFileSync(join(folder, '.config.json.partial'), '{');
  writeFileSync(join(folder, '.other'), 'not ours');
  mend(folder);
  expect(readdirSync(folder).sort()).toEqual(['.other', 'model']);
  expect(weights()).toBe('old');

  make('.model.replaced', 'older'); // killed after them
  mend(folder);
  expect(readdirSync(folder).sort()).toEqual(['.other', 'model']);
  expect(weights()).toBe('old');
});

it('removes a folder, and replaces a file', () => {
  mkdirSync(target);
  removeFolder(target);
  expect(readdirSync(folder)).toEqual([]);
  writeFileAtomically(join(folder, 'a'), '1');
  writeFileAtomically(join(folder, 'a'), '2');
  expect(readFileSync(join(folder, 'a'), 'utf8')).toBe('2');
  expect(readdirSync(folder)).toEqual(['a']);
});
