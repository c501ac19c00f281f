import type { ChildProcess } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { quoted } from '../lib/text.ts';
import { refusal } from '../testing/mains.ts';
import { writeTestData, writeTestModel } from '../testing/model.ts';
import {
  BACKEND,
  type During,
  type Ended,
  holds,
  lastStep,
  NODE,
  REPOSITORY,
  results,
  runProcess,
  sleep,
  until,
} from '../testing/processes.ts';
import { runFolder } from './compare_report.ts';

// The script as a user runs it, with a random model so small that a step takes milliseconds.

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));

const temp = mkdtempSync(join(tmpdir(), 'compare-'));
const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));

beforeAll(async () => {
  await writeTestModel(at('model'));
  writeTestData(at('data.jsonl'), 12);
});

const TINY =
  `--model-name ${at('model')} --dataset ${at('data.jsonl')} --backend ${BACKEND} --eval-size 4 --max-new-tokens 16 --batch-size 2 --num-generations 4 --learning-rate 0.01 --save-steps 1`.split(
    ' ',
  );
const VARIANTS = ['base', 'drgrpo --length-normalization completion'];
const SHORT = ['--experiments', VARIANTS.join(', '), '--seeds', '0,1', '--max-steps', '3'];
const ENDLESS = ['--experiments', 'base,drgrpo', '--seeds', '0', '--max-steps', '100000', '--jobs', '2'];
const TSX = [join(REPOSITORY, 'node_modules/.bin/tsx')];

const compare = (args: string[], { command = NODE, during }: { command?: string[]; during?: During } = {}) =>
  runProcess([...command, 'tools/compare.ts', ...args], { during });

const runsOf = (folder: string) =>
  [0, 1].flatMap((seed) => VARIANTS.map((variant) => runFolder(folder, variant, seed)));

/** The comparison that no one has interrupted, for all tests. */
let whole: Promise<Ended>;
const uninterrupted = () => {
  whole ??= compare([...SHORT, '--jobs', '2', '--output-dir', at('whole'), '--', ...TINY]);
  return whole;
};

/** Waits until no process of the group is left. */
async function gone({ pid }: ChildProcess): Promise<void> {
  for (;;) {
    try {
      process.kill(-pid!, 0);
    } catch {
      return;
    }
    await sleep(20);
  }
}

describe.concurrent('compare', () => {
  it('trains every variant with every seed, and reports', async () => {
    const { code, stdout, stderr } = await uninterrupted();
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const folder = at('whole');
    for (const variant of VARIANTS) {
      for (const seed of [0, 1]) {
        expect(stdout).toMatch(
          new RegExp(`^${variant}, seed ${seed}: held-out accuracy [\\d.]+ %, [\\d.]+ minutes$`, 'm'),
        );
        expect(lastStep(runFolder(folder, variant, seed))).toBe(3);
      }
    }
    expect(
      readdirSync(folder)
        .filter((name) => !name.startsWith('base') && !name.startsWith('drgrpo'))
        .sort(),
    ).toEqual(['compare.json', 'curves.svg', 'report.html', 'report.md']);
    const report = readFileSync(join(folder, 'report.md'), 'utf8');
    expect(report).toContain('2 variants, 3 steps, seeds 0, 1.');
    expect(report).toContain('| lengthNormalization | – | completion |');
  });

  it('that is killed (-9) leaves no orphans, and ends as if it had not been, with nothing made twice', async () => {
    const folder = at('killed');
    const [first, second] = runsOf(folder);
    const during = async (child: ChildProcess, ended: () => boolean) => {
      await until(() => lastStep(second) >= 1, ended);
      child.kill('SIGKILL');
      await gone(child);
    };
    const killed = await compare([...SHORT, '--output-dir', folder, '--', ...TINY], { during });
    expect(killed).toMatchObject({ signal: 'SIGKILL', stderr: '' });
    const begun = statSync(join(first, 'config.json')).mtimeMs; // a run that goes on writes it anew

    const { code, stdout, stderr } = await compare(['--resume', folder]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).not.toContain('base, seed 0');
    expect(statSync(join(first, 'config.json')).mtimeMs).toBe(begun);
    await uninterrupted();
    expect(runsOf(folder).map(results)).toEqual(runsOf(at('whole')).map(results));

    const again = await compare(['--resume', folder]);
    expect(again).toMatchObject({ code: 0, stderr: '', stdout: expect.not.stringContaining('started') });
  });

  const SIGNALS: [string, string[], (child: ChildProcess) => void][] = [
    ['Ctrl-C', NODE, ({ pid }) => process.kill(-pid!, 'SIGINT')],
    ['Ctrl-C under tsx', TSX, ({ pid }) => process.kill(-pid!, 'SIGINT')],
    ['kill -INT of compare alone', NODE, (child) => child.kill('SIGINT')],
    ['kill -TERM of compare alone', NODE, (child) => child.kill('SIGTERM')],
  ];

  it.each(SIGNALS)(
    '%s: runs finish their step and save, and it says how to go on',
    async (name, command, interrupt) => {
      const folder = at(name);
      const runs = ['base', 'drgrpo'].map((variant) => runFolder(folder, variant, 0));
      const during = async (child: ChildProcess, ended: () => boolean) => {
        await until(() => runs.every((run) => lastStep(run) >= 1), ended);
        interrupt(child);
      };
      const args = [...ENDLESS, '--output-dir', folder, '--', ...TINY, '--save-steps', '0'];
      const { code, stdout, stderr } = await compare(args, { command, during });
      expect({ code, stderr: stderr.trim() }).toEqual({
        code: 130,
        stderr: expect.stringMatching(/^finishing this step.*$/),
      });
      expect(stdout).toContain(`npm run compare -- --resume ${quoted(folder)}\n`);
      for (const run of runs) expect(readdirSync(run)).toContain(`checkpoint-${lastStep(run)}`);
    },
  );

  it('sweeps an option, and goes on with it', async () => {
    const folder = at('sweep');
    const given = ['--experiments', 'base', '--sweep', 'kl-coef=0,0.1', '--seeds', '0', '--max-steps', '2'];
    const first = await compare([...given, '--output-dir', folder, '--', ...TINY]);
    expect(first).toMatchObject({ code: 0, stderr: '' });
    const variants = ['base --kl-coef 0', 'base --kl-coef 0.1'];
    for (const variant of variants) expect(lastStep(runFolder(folder, variant, 0))).toBe(2);
    const report = readFileSync(join(folder, 'report.md'), 'utf8');
    expect(report).toContain('|  | 0 | 0.1 |');
    rmSync(runFolder(folder, variants[1], 0), { recursive: true });
    expect(await compare(['--resume', folder])).toMatchObject({ code: 0, stderr: '' });
    const timeless = (text: string) => text.replace(/<code>.*/s, '');
    expect(timeless(readFileSync(join(folder, 'report.md'), 'utf8'))).toBe(timeless(report));
  });

  it('that has a failing run ends the others well, says why, and can go on', async () => {
    const folder = at('failing');
    const data = at('late.jsonl');
    const experiments = ['--experiments', `base,base --dataset ${data}`, '--seeds', '0', '--jobs', '2'];
    const { code, stderr } = await compare([
      ...experiments,
      '--max-steps',
      '20',
      '--output-dir',
      folder,
      '--',
      ...TINY.filter((word) => !word.includes('data')),
    ]);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
    expect(stderr).toContain(`base --dataset ${data}, seed 0: cannot read the data set ${data} (ENOENT)`);
    expect(stderr).toContain(`its log: ${runFolder(folder, `base --dataset ${data}`, 0)}.log`);
    expect(stderr).toContain(`--resume ${folder}`);
    const other = runFolder(folder, 'base', 0);
    expect(holds(other, /^checkpoint/)).toBe(true);
    writeTestData(data, 12);
    expect(await compare(['--resume', folder])).toMatchObject({ code: 0, stderr: '' });
  });
});

const NEW = () => ['--output-dir', at('refused')];
const SEVEN = [1, 2, 3, 4, 5, 6, 7].map((n) => `base --warmup-steps ${n}`).join(',');
const BAD: [name: string, args: () => string[], message: RegExp][] = [
  ['nothing to compare', () => NEW(), /--experiments base,drgrpo/],
  ['an unknown experiment', () => ['--experiments', 'base,ppo', ...NEW()], /'ppo' is no experiment.*base, .*drgrpo/],
  [
    'a variant twice',
    () => ['--experiments', 'drgrpo --blas off,drgrpo  --blas off', ...NEW()],
    /'drgrpo --blas off' occurs twice/,
  ],
  ['too many variants', () => ['--experiments', SEVEN, ...NEW()], /at most 6 lines fit into a chart, found 7$/],
  [
    'too many lines of a sweep',
    () => ['--experiments', 'base,drgrpo', '--sweep', 'seed=1,2,kl-coef=1,2,3,4', ...NEW()],
    /at most 6 lines .* found 8, which are/,
  ],
  [
    'a sweep without values',
    () => ['--experiments', 'base', '--sweep', 'learning-rate', ...NEW()],
    /--sweep.*as in learn/,
  ],
  [
    'a sweep of what is no option',
    () => ['--experiments', 'base', '--sweep', 'rate=1,2', ...NEW()],
    /base --rate 1: unknown option '--rate'/,
  ],
  [
    'a value that the experiment refuses',
    () => ['--experiments', 'base', '--sweep', 'learning-rate=1e-4,2', ...NEW()],
    /base --learning-rate 2: .*from 0 to 1/,
  ],
  ['a seed twice', () => ['--experiments', 'base', '--seeds', '1,2,1', ...NEW()], /'1' occurs twice/],
  ['a seed that is none', () => ['--experiments', 'base', '--seeds', '1,x', ...NEW()], /--seeds.*an integer from 0 to/],
  ['no jobs', () => ['--experiments', 'base', '--jobs', '0', ...NEW()], /--jobs.*from 1 to/],
  [
    'an unknown option of the runs',
    () => ['--experiments', 'base', ...NEW(), '--', '--learning-rte', '1'],
    /base: unknown option '--learning-rte'.*--learning-rate/,
  ],
  [
    'options that an experiment refuses',
    () => ['--experiments', 'base --mini-batch-size 7', ...NEW()],
    /mini-batch-size 7: the 256 completions/,
  ],
  [
    'an option that is not for runs',
    () => ['--experiments', 'base', ...NEW(), '--', '--seed=3'],
    /--seed=3 cannot be an option of a run/,
  ],
  [
    '--output-dir that is in use',
    () => ['--experiments', 'base', '--output-dir', at('used')],
    /used holds other files/,
  ],
  ['--resume of what is none', () => ['--resume', at('model')], /model is not the folder of a comparison/],
  [
    '--resume with other options',
    () => ['--resume', at('saved'), '--max-steps', '4'],
    /saved\/compare\.json: leave out/,
  ],
  [
    '--resume with other options of runs',
    () => ['--resume', at('saved'), '--', '--blas', 'off'],
    /saved\/compare\.json: leave out/,
  ],
];

describe('bad input is refused with one sentence', () => {
  beforeAll(() => {
    for (const name of ['used', 'saved']) mkdirSync(at(name));
    writeFileSync(at('used', 'mine'), '');
    const options = { experiments: ['base'], seeds: [0], maxSteps: 3, jobs: 1 };
    writeFileSync(at('saved', 'compare.json'), JSON.stringify({ options, runOptions: [] }));
  });

  it.each(BAD)('%s', async (_, args, message) => {
    expect(await refusal('tools/compare.ts', args())).toMatch(message);
    expect(existsSync(at('refused'))).toBe(false);
    expect(readdirSync(at('used'))).toEqual(['mine']);
    expect(readdirSync(at('saved'))).toEqual(['compare.json']);
  });
});
