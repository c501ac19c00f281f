import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { command as allReduce } from '../bench/all_reduce.ts';
import { command as bench } from '../bench/bench.ts';
import * as base from '../experiment_base/train.ts';
import * as ddp from '../experiment_ddp/train.ts';
import * as drgrpo from '../experiment_drgrpo/train.ts';
import * as qa from '../experiment_multiturn_qa/train.ts';
import * as tool from '../experiment_multiturn_tool/train.ts';
import { command as pretrain } from '../models/tiny/pretrain.ts';
import { createCommand as createAsk } from './ask.ts';
import { createCommand as createCompare } from './compare.ts';
import { createCommand as createEvaluate } from './evaluate.ts';
import { createCommand as createNotebooks } from './notebooks.ts';

const FOLDERS = [
  '.',
  'models/tiny',
  'lib/model/fixtures',
  ...readdirSync('.').filter((name) => /^experiment_|^bench$/.test(name)),
];
const READMES = [...FOLDERS.map((folder) => join(folder, 'README.md')), 'CONTRIBUTING.md'].filter((file) =>
  existsSync(file),
);
const scripts = Object.keys(JSON.parse(readFileSync('package.json', 'utf8')).scripts);

const NOTEBOOKS = readdirSync('notebooks').filter((file) => file.endsWith('.ipynb'));

/** What there is to read in a README, or between the cells of code of a notebook. */
function textOf(file: string): string {
  const text = readFileSync(file, 'utf8');
  if (!file.endsWith('.ipynb')) return text;
  const cells = JSON.parse(text).cells as { cell_type: string; source: string[] }[];
  return cells.flatMap(({ cell_type, source }) => (cell_type === 'markdown' ? source.join('') : [])).join('\n\n');
}

/** What code hosts make of headings. */
const anchorsOf = (file: string): string[] =>
  [...textOf(file).matchAll(/^#+ (.*)$/gm)].map(([, heading]) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );

describe.each([...READMES, ...NOTEBOOKS.map((name) => join('notebooks', name))])('%s', (file) => {
  const text = textOf(file);

  it('names no option that does not exist', () => {
    const experiments = [base, ddp, drgrpo, tool, qa].map(({ createCommand }) => createCommand());
    const commands = [
      ...experiments,
      createAsk(),
      createCompare(),
      createEvaluate(),
      createNotebooks(),
      allReduce,
      bench,
      pretrain,
    ];
    const known = new Set(commands.flatMap((command) => command.options.map(({ long }) => long)));
    // Of commander, sync-copies, npm, mpirun and srun.
    for (const other of [
      '--help',
      '--check',
      '--write', // of Biome
      '--omit',
      '--hostfile',
      '--mca',
      '--mpi',
      '--bind-to',
      '--allow-run-as-root',
      '--allow-root', // of Jupyter
    ])
      known.add(other);
    const named = [...text.matchAll(/(?<![\w-])--[a-z][a-z-]*[a-z]/g)].map(([option]) => option);
    expect(named.filter((option) => !known.has(option))).toEqual([]);
  });

  it('names no npm script and links to no file that does not exist', () => {
    const named = [...text.matchAll(/npm run ([\w:-]+)/g)].map(([, script]) => script);
    expect(named.filter((script) => !scripts.includes(script))).toEqual([]);
    const linked = [...text.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, path]) => path);
    expect(linked.filter((path) => !existsSync(join(dirname(file), path)))).toEqual([]);
    const places = [...text.matchAll(/\]\((?!https?:)([^)#]*)#([^)]+)\)/g)];
    const lost = places.filter(
      ([, path, anchor]) => !anchorsOf(path ? join(dirname(file), path) : file).includes(anchor),
    );
    expect(lost.map(([link]) => link)).toEqual([]);
  });
});
