import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { command as allReduce } from '../bench/all_reduce.ts';
import { command as bench } from '../bench/bench.ts';
import { createCommand as createRewardModel } from '../experiment_reward_model/train_reward_model.ts';
import { command as pretrain } from '../models/tiny/pretrain.ts';
import { createCommand as createTrainer } from '../trainer/train.ts';
import { createCommand as createWatch } from '../watch/server.ts';
import { createCommand as createWebBuild } from '../web/build.ts';
import { createCommand as createWeb } from '../web/server.ts';
import { createCommand as createAsk } from './ask.ts';
import { createCommand as createCompare } from './compare.ts';
import { createCommand as createEvaluate } from './evaluate.ts';
import { createCommand as createNotebooks } from './notebooks.ts';
import { command as tradeOff } from './trade_off.ts';

const EXPERIMENTS = readdirSync('.').filter((name) => name.startsWith('experiment_'));
const FOLDERS = [
  '.',
  'models/tiny',
  'lib/model/fixtures',
  'lib/training/fixtures',
  'bench',
  'trainer',
  'docs/compare_variants',
  'notebooks',
  ...EXPERIMENTS,
];
const READMES = [...FOLDERS.map((folder) => join(folder, 'README.md')), 'CONTRIBUTING.md'].filter((file) =>
  existsSync(file),
);
const calls: Record<string, string> = JSON.parse(readFileSync('package.json', 'utf8')).scripts;
const scripts = Object.keys(calls);
const commands = [
  ...(await Promise.all(EXPERIMENTS.map((name) => import(`../${name}/train.ts`)))).map((it) => it.createCommand()),
  ...[
    createAsk(),
    createCompare(),
    createEvaluate(),
    createNotebooks(),
    createTrainer(),
    createWatch(),
    createWeb(),
    createWebBuild(),
    createRewardModel(),
    allReduce,
    bench,
    pretrain,
    tradeOff,
  ],
] as { options: { long: string }[] }[];

const SOURCES = readdirSync('.', { recursive: true, encoding: 'utf8' }).filter((path) =>
  /^(?!node_modules|lib.dist|runs).*\.ts$/.test(path),
);
const words = new Set(SOURCES.flatMap((path) => readFileSync(path, 'utf8').match(/\w+/g) ?? []));
/** What somebody has built, or is to write. */
const NOT_HERE = /^(lib\/dist|notebooks\/executed|experiment_reinforce_pp)/;

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
    const known = new Set(commands.flatMap((command) => command.options.map(({ long }) => long)));
    // Of commander, sync-copies, npm, mpirun and srun.
    for (const other of [
      '--import', // of Node
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
      '--logdir', // of TensorBoard
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

  it('names no function and no path that does not exist', () => {
    const names = [...text.matchAll(/`([a-z]+[A-Z]\w*)`/g)].map(([, name]) => name);
    const isReadme = file.endsWith('.md'); // a notebook may name what its own cells declare
    expect(names.filter((name) => isReadme && !words.has(name))).toEqual([]);
    const folders = 'lib|tasks|models|bench|testing|docs|notebooks|watch|web|experiment_[a-z]+';
    const paths = [...text.matchAll(RegExp(`(?<![\\w./-])(?:${folders})/[\\w./-]+`, 'g'))].map(([path]) => path);
    const lost = paths.filter((path) => !existsSync(path.replace(/\.$/, '')) && !NOT_HERE.test(path));
    expect(lost).toEqual([]);
  });
});

it('README counts the lines of the algorithm', () => {
  const lines = readFileSync('experiment_base/train.ts', 'utf8').trimEnd().split('\n').length;
  expect(/lines to read[^|]*\| (\d+) in one file/.exec(textOf('README.md'))?.[1]).toBe(String(lines));
});

it('package.json calls no file that does not exist', () => {
  const files = Object.values(calls).flatMap((call) => call.match(/[\w./]+\.m?[jt]s(on)?\b/g) ?? []);
  expect(files.length).toBeGreaterThan(10);
  expect(files.filter((file) => !existsSync(file))).toEqual([]);
});
