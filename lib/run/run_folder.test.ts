import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { holds } from '../../testing/processes.ts';
import { UserError } from '../errors.ts';
import { ensureFolder, writeFile } from '../folders.ts';
import { findRun } from './find_run.ts';
import { openRun, type RunFolder, timestamp } from './run_folder.ts';

let root: string;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'runs-'));
});
afterEach(() => rmSync(root, { recursive: true }));

const experiment = 'experiment_x';
const open = (extra: { outputDir?: string; resume?: string; options?: Record<string, unknown> } = {}) =>
  openRun({ experiment, root, options: { seed: 1 }, ...extra });
const read = (run: RunFolder, name: string) => readFileSync(join(run.folder, name), 'utf8');
const checkpoints = (run: RunFolder) =>
  readdirSync(run.folder)
    .filter((name) => name.includes('checkpoint'))
    .sort();

function message(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    return (error as UserError).message;
  }
  throw new Error('nothing was thrown');
}

/** Steps `from` … `to`, with a checkpoint every second step. */
async function train(run: RunFolder, from: number, to: number, limit?: number) {
  for (let step = from; step <= to; step++) {
    run.log({ step, reward: step / 10 });
    run.sample([{ step, text: `sample ${step}` }]);
    const write = async (dir: string) => writeFileSync(join(dir, 'weights'), String(step));
    if (step % 2 === 0) await run.saveCheckpoint(step, write, { limit });
  }
}

describe('a new run', () => {
  it('has a folder named by the time, also if two start in one second', () => {
    const [a, b] = [open(), open()];
    expect(a.folder).toMatch(/experiment_x\/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-2)?$/);
    expect(b.folder).not.toBe(a.folder);
    expect(timestamp(new Date(2026, 0, 31, 14, 5, 9))).toBe('2026-01-31_14-05-09');
    expect(a).toMatchObject({ step: 0, checkpoint: undefined });
    expect(JSON.parse(read(a, 'config.json'))).toEqual({
      experiment,
      id: a.id,
      folder: a.folder,
      node: process.versions.node,
      options: { seed: 1 },
    });
    expect(a.id).toMatch(/^[0-9a-f-]{36}$/);
    expect(b.id).not.toBe(a.id);
  });

  it('takes an output folder that is new or empty', () => {
    const outputDir = join(root, 'deep', 'mine');
    expect(open({ outputDir }).folder).toBe(outputDir);
    mkdirSync(join(root, 'empty'));
    open({ outputDir: join(root, 'empty') });
  });

  it('refuses one that holds something, and leaves it alone', async () => {
    const outputDir = join(root, 'mine');
    await train(open({ outputDir }), 1, 1);
    const before = readFileSync(join(outputDir, 'config.json'), 'utf8');
    expect(message(() => open({ outputDir, options: { seed: 2 } }))).toBe(
      `--output-dir ${outputDir} holds another run: name a new folder, or continue a run with --resume`,
    );
    expect(readFileSync(join(outputDir, 'config.json'), 'utf8')).toBe(before);

    mkdirSync(join(root, 'photos'));
    writeFileSync(join(root, 'photos', 'cat.jpg'), '');
    expect(message(() => open({ outputDir: join(root, 'photos') }))).toContain('holds other files');
    expect(readdirSync(join(root, 'photos'))).toEqual(['cat.jpg']);
  });

  it('refuses a file, and what cannot be written', () => {
    const file = join(root, 'file');
    writeFileSync(file, '');
    expect(message(() => open({ outputDir: file }))).toBe(`--output-dir ${file} is a file: name a new folder`);
    expect(message(() => open({ outputDir: join(file, 'below') }))).toMatch(/^cannot write to .*below \(ENOTDIR\)/);
    if (process.platform === 'linux') {
      expect(message(() => open({ outputDir: '/proc/a/b' }))).toMatch(/^cannot write to \/proc\/a\/b \(ENOENT\)/);
    }
  });
});

describe('checkpoints', () => {
  it('keeps the newest, and is seen only when complete', async () => {
    const run = open();
    await train(run, 1, 8, 2);
    expect(checkpoints(run)).toEqual(['checkpoint-6', 'checkpoint-8']);
    await run.saveCheckpoint(10, async () => expect(checkpoints(run)).not.toContain('checkpoint-10'), { limit: 1 });
    expect(checkpoints(run)).toEqual(['checkpoint-10']);
  });

  it('keeps all without a limit, in the order of numbers and not of names', async () => {
    const run = open();
    await train(run, 1, 10);
    expect(checkpoints(run)).toHaveLength(5);
    expect(findRun('latest', { experiment, root }).step).toBe(10);
    await run.saveCheckpoint(10, async () => {}, { limit: 2 });
    expect(checkpoints(run)).toEqual(['checkpoint-10', 'checkpoint-8']);
  });

  it('that cannot be saved leave what there is, and say where to go on from', async () => {
    const run = open();
    const fail = async () => {
      throw new UserError('tensor "x" holds NaN');
    };
    await expect(run.saveCheckpoint(2, fail)).rejects.toThrow(
      new UserError('checkpoint-2 is not saved: tensor "x" holds NaN; there is no checkpoint to go on from'),
    );
    await train(run, 1, 2);
    const last = `--resume ${join(run.folder, 'checkpoint-2')} goes on from the last checkpoint`;
    await expect(run.saveCheckpoint(4, fail)).rejects.toThrow(
      new UserError(`checkpoint-4 is not saved: tensor "x" holds NaN; ${last}`),
    );
    await expect(run.saveFinalModel(fail)).rejects.toThrow(
      new UserError(`final_model is not saved: tensor "x" holds NaN; ${last}`),
    );
    expect(readdirSync(run.folder).filter((name) => /^(checkpoint|final)/.test(name))).toEqual(['checkpoint-2']);
  });

  it('comes with new tables and curves once a minute', async () => {
    const began = performance.now();
    const now = vi.spyOn(performance, 'now').mockReturnValue(began);
    const run = open();
    const drawn: boolean[] = [];
    for (const minutes of [0.5, 1.1, 2, 2.2]) {
      rmSync(join(run.folder, 'curves.svg'), { force: true });
      now.mockReturnValue(began + minutes * 60_000);
      await run.saveCheckpoint(1, async () => {});
      drawn.push(existsSync(join(run.folder, 'curves.svg')));
    }
    now.mockRestore();
    expect(drawn).toEqual([false, true, false, true]);
  });

  it('writes tables and curves, and the final model', async () => {
    const run = open();
    await train(run, 1, 2);
    await run.report();
    expect(read(run, 'metrics.csv')).toBe('step,reward\n1,0.1\n2,0.2\n');
    run.log({ step: 3, reward: 1 });
    await run.report();
    expect(read(run, 'metrics.csv')).toContain('3,1\n');
    expect(read(run, 'curves.svg')).toContain('Reward');
    const path = await run.saveFinalModel(async (dir) => writeFileSync(join(dir, 'weights'), 'final'));
    expect(readFileSync(join(path, 'weights'), 'utf8')).toBe('final');
  });
});

describe('resuming', () => {
  it('ends with the files of a run that was never interrupted', async () => {
    const whole = open({ outputDir: join(root, 'whole') });
    await train(whole, 1, 6);
    await whole.report();

    const outputDir = join(root, 'killed');
    const killed = open({ outputDir });
    await train(killed, 1, 5);
    writeFileSync(join(outputDir, 'metrics.jsonl'), `${read(killed, 'metrics.jsonl')}{"step":6,"rew`);
    mkdirSync(join(outputDir, '.checkpoint-6.partial'));

    const resumed = open({ outputDir, resume: 'latest' });
    expect(resumed).toMatchObject({ folder: outputDir, step: 4, checkpoint: join(outputDir, 'checkpoint-4') });
    await train(resumed, 5, 6);
    await resumed.report();
    expect(readdirSync(resumed.folder)).toEqual(readdirSync(whole.folder));
    expect(resumed.id).toBe(killed.id);
    const config = (run: RunFolder) => ({ ...JSON.parse(read(run, 'config.json')), id: '', folder: '' });
    expect(config(resumed)).toEqual(config(whole));
    for (const name of ['metrics.jsonl', 'completions.jsonl', 'metrics.csv', 'curves.svg']) {
      expect(read(resumed, name)).toBe(read(whole, name));
    }
  });

  it('finds a checkpoint that was being written again', async () => {
    const run = open();
    await train(run, 1, 4, 1);
    const aside = join(run.folder, '.checkpoint-4.replaced');
    renameSync(join(run.folder, 'checkpoint-4'), aside);
    expect(findRun('latest', { experiment, root })).toMatchObject({ step: 4, checkpoint: aside });
    expect(existsSync(aside)).toBe(true);
    expect(open({ resume: 'latest' }).step).toBe(4);
    expect(checkpoints(run)).toEqual(['checkpoint-4']);
  });

  it('keeps the id of a run for good, and gives none to checkpoints of an earlier version', async () => {
    const run = open();
    const again = open({ resume: run.folder });
    await train(again, 1, 2);
    expect(open({ resume: run.folder }).id).toBe(again.id);
    writeFileSync(join(run.folder, 'config.json'), JSON.stringify({ experiment, options: {} }));
    expect(open({ resume: run.folder }).id).toBeUndefined();
    expect(open({ resume: run.folder }).id).toBeUndefined();
  });

  it('starts again where there is no checkpoint yet', async () => {
    const run = open();
    run.log({ step: 0, 'eval/accuracy': 0.5 });
    await train(run, 1, 1);
    const again = open({ resume: 'latest' });
    expect(again).toMatchObject({ folder: run.folder, step: 0, checkpoint: undefined });
    expect(read(again, 'metrics.jsonl')).toBe('');
  });

  it('goes back to an older checkpoint that is named, and forgets what came after', async () => {
    const run = open();
    await train(run, 1, 6);
    const named = join(run.folder, 'checkpoint-2');
    const again = open({ resume: named });
    expect(again.step).toBe(2);
    expect(checkpoints(again)).toEqual(['checkpoint-2']);
    expect(read(again, 'metrics.jsonl')).toBe('{"step":1,"reward":0.1}\n{"step":2,"reward":0.2}\n');
  });

  it('finds the newest run and its options, and changes nothing', async () => {
    const first = open({ options: { seed: 1 } });
    const second = open({ options: { seed: 2 } });
    mkdirSync(join(root, experiment, '9999-not-a-run'));
    await train(second, 1, 3);
    const log = read(second, 'metrics.jsonl');
    expect(findRun('latest', { experiment, root })).toEqual({
      experiment,
      id: second.id,
      folder: second.folder,
      step: 2,
      checkpoint: join(second.folder, 'checkpoint-2'),
      file: join(second.folder, 'config.json'),
      options: { seed: 2 },
      formerFolder: second.folder,
    });
    expect(findRun(first.folder, { experiment, root }).options).toEqual({ seed: 1 });
    expect(read(second, 'metrics.jsonl')).toBe(log);
  });

  it('says why a run cannot be resumed', async () => {
    const find = (resume: string, outputDir?: string) =>
      message(() => findRun(resume, { experiment, root, outputDir }));
    expect(find('latest')).toBe(`--resume latest: there is no run in ${join(root, experiment)} yet`);
    expect(find(join(root, 'nowhere'))).toContain('is not the folder of a run');
    const run = open();
    await train(run, 1, 2);
    expect(find(join(run.folder, 'checkpoint-4'))).toContain('there is no checkpoint');
    expect(find(run.folder, join(root, 'other'))).toContain('leave out --output-dir');
    expect(message(() => findRun(run.folder, { experiment: 'experiment_y', root }))).toContain(
      'holds a run of experiment_x, not of experiment_y',
    );
    // A model folder has a config.json too.
    mkdirSync(join(root, 'model'));
    writeFileSync(join(root, 'model', 'config.json'), '{"model_type": "llama"}');
    expect(find(join(root, 'model'))).toContain('is not the folder of a run');
    expect(existsSync(join(root, 'other'))).toBe(false);
  });

  it.each<[string, RegExp]>([
    ['{"experiment": "experiment_x", "options": null}', /is not the folder of a run: it has no config.json that a run/],
    ['{"experiment": "experiment_x", "options": [1]}', /is not the folder of a run/],
    ['null', /is not the folder of a run/],
    [
      `{"experiment": "experiment_x", "options": {"seed": ${'['.repeat(1e5)}${']'.repeat(1e5)}}}`,
      /is not the folder of/,
    ],
    ['{"experiment": "experiment_x", "id": 1, "options": {}}', /config.json: "id" must be a text, found 1$/],
  ])('says what is wrong with a config.json of %.60s', (text, expected) => {
    const run = open();
    writeFileSync(join(run.folder, 'config.json'), text);
    expect(message(() => findRun(run.folder, { experiment, root }))).toMatch(expected);
  });
});

describe('the folder of a run that goes on', () => {
  const GONE =
    /^\S+ was deleted, moved or replaced while it was written, so this run ends: if it was moved, --resume with/;
  const AWAY: Record<string, (folder: string) => void> = {
    deleted: (folder) => rmSync(folder, { recursive: true }),
    moved: (folder) => renameSync(folder, `${folder} elsewhere`),
    'moved, and another in its place': (folder) => {
      renameSync(folder, `${folder} elsewhere`);
      mkdirSync(folder);
    },
  };
  const WRITES: Record<string, (run: RunFolder) => Promise<unknown>> = {
    metrics: async (run) => run.log({ step: 3 }),
    samples: async (run) => run.sample([{ step: 3 }]),
    'a checkpoint': (run) => run.saveCheckpoint(3, async () => {}),
    'the final model': (run) => run.saveFinalModel(async () => {}),
    'the curves': (run) => run.report(),
  };
  const cases = Object.keys(AWAY).flatMap((how) => Object.keys(WRITES).map((what) => [how, what]));

  it.each(cases)('%s: noticed before writing %s, and nothing is made anew', async (how, what) => {
    const run = open();
    await train(run, 1, 1);
    AWAY[how](run.folder);
    const left = () => (existsSync(run.folder) ? readdirSync(run.folder) : undefined);
    const before = left();
    const error = await WRITES[what](run).catch((error: Error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect((error as Error).message).toMatch(GONE);
    expect(left()).toEqual(before);
  });

  it.each(Object.keys(AWAY))('%s: noticed in the middle of a checkpoint too', async (how) => {
    const run = open();
    const saved = run.saveCheckpoint(2, async (dir) => {
      AWAY[how](run.folder);
      ensureFolder(dir);
      await writeFile(join(dir, 'weights'), '2');
    });
    await expect(saved).rejects.toThrow(GONE);
    expect(holds(run.folder, /^[^.]/)).toBe(false);
  });

  it('may lose a checkpoint that is being written: the run ends, and the one before is there', async () => {
    const run = open();
    await train(run, 1, 2);
    const saved = run.saveCheckpoint(4, async (dir) => {
      rmSync(dir, { recursive: true });
      await writeFile(join(dir, 'weights'), '4');
    });
    await expect(saved).rejects.toThrow(
      /^checkpoint-4 is not saved: cannot write \S+weights \(ENOENT: .*\); --resume \S+checkpoint-2 goes on/,
    );
    expect(checkpoints(run)).toContain('checkpoint-2');
  });

  it('may lose an old checkpoint, but not a log: that is never begun anew', async () => {
    const run = open();
    await train(run, 1, 2);
    rmSync(join(run.folder, 'checkpoint-2'), { recursive: true });
    await run.saveCheckpoint(4, async () => {}, { limit: 1 });
    rmSync(join(run.folder, 'metrics.jsonl'));
    expect(message(() => run.log({ step: 5 }))).toMatch(
      /^cannot write \S+metrics\.jsonl \(ENOENT: .*\); --resume \S+checkpoint-4 goes on from the last checkpoint$/,
    );
    expect(existsSync(join(run.folder, 'metrics.jsonl'))).toBe(false);
  });

  it.runIf(process.platform === 'linux')('on a disk that is full: the file is named', async () => {
    const run = open();
    await train(run, 1, 2);
    const fill = (name: string) => symlinkSync('/dev/full', join(run.folder, name));
    rmSync(join(run.folder, 'completions.jsonl'));
    fill('completions.jsonl');
    const full = (name: string) =>
      `cannot write ${join(run.folder, name)} (ENOSPC: no space left on device); --resume ${join(run.folder, 'checkpoint-2')} goes on from the last checkpoint`;
    expect(message(() => run.sample([{ step: 3 }]))).toBe(full('completions.jsonl'));
    fill('.metrics.csv.partial');
    await expect(run.report()).rejects.toThrow(full('metrics.csv'));
    const saved = run.saveFinalModel(async (dir) => {
      symlinkSync('/dev/full', join(dir, 'config.json'));
      await writeFile(join(dir, 'config.json'), '{}');
    });
    await expect(saved).rejects.toThrow(/^final_model is not saved: cannot write \S+config\.json \(ENOSPC: /);
  });
});
