import { copyFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { refusal } from '../testing/mains.ts';
import { MPI, mpirun, withMpi } from '../testing/mpi.ts';
import {
  BACKEND,
  type During,
  jsonLines,
  lastStep,
  NODE,
  results,
  runProcess,
  sleep,
  until,
} from '../testing/processes.ts';
import { at, MODEL, run, SHORT } from '../testing/script.ts';

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts')); // for refusals, which need no process of their own
vi.mock('../lib/cli/ranks.ts', () => import('../testing/ranks.ts'));

const script = 'experiment_async/train.ts';
const refused = (flags: string[]) => refusal(script, [...SHORT, '--output-dir', at('wrong'), ...flags]);
const async = (folder: string, flags: string[] = [], during?: During) =>
  run([...SHORT, '--output-dir', folder, ...flags], { script, during });

/** What a run leaves, without what says who waited for whom, and without other metrics of these names. */
function comparable(folder: string, others = /^$/) {
  const { metrics, ...rest } = results(folder);
  const isLeft = (name: string) => !/^(queue|idle)\//.test(name) && !others.test(name);
  return {
    ...rest,
    metrics: metrics.map((row) => Object.fromEntries(Object.entries(row).filter(([name]) => isLeft(name)))),
  };
}
const staleness = (folder: string) =>
  jsonLines(join(folder, 'metrics.jsonl')).flatMap((row) => row['staleness/max'] ?? []);

/** The processes that another one has started. */
const childrenOf = (pid: number): number[] =>
  readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return [];
    try {
      const parent = Number(/^PPid:\s*(\d+)/m.exec(readFileSync(`/proc/${name}/status`, 'utf8'))?.[1]);
      return parent === pid ? [Number(name)] : [];
    } catch {
      return []; // it has just ended
    }
  });
const isAlive = (pid: number): boolean => {
  try {
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

describe('a run', () => {
  it('with --mode sync, or without staleness, is that of experiment_base to the bit', async () => {
    const [base, sync, zero] = [at('base'), at('sync'), at('zero')];
    expect((await run([...SHORT, '--output-dir', base])).code).toBe(0);
    expect((await async(sync, ['--mode', 'sync'])).code).toBe(0);
    expect((await async(zero, ['--max-staleness', '0'])).code).toBe(0);
    const common = (folder: string) => comparable(folder, /^(staleness|importance)\//); // which base does not have
    expect(common(sync)).toEqual(common(base));
    expect(common(zero)).toEqual(common(base));
    expect(staleness(zero)).toEqual(new Array(8).fill(0));
  });

  it.each([
    ['two samplers', ['--samplers', '2', '--max-staleness', '3']],
    [
      'weights in flight, every other step',
      ['--in-flight', '--weight-sync-steps', '2', '--max-staleness', '4', '--max-steps', '12'],
    ],
    ['an adapter', ['--lora-rank', '2', '--max-staleness', '2']],
  ])('with %s is repeated by its schedule to the bit', async (name, flags) => {
    const [first, second] = [at(`first, ${name}`), at(`second, ${name}`)];
    const { code, stdout, stderr } = await async(first, flags);
    expect(stderr).toBe('');
    expect(code, stdout).toBe(0);
    const bound = Number(flags[flags.indexOf('--max-staleness') + 1]);
    expect(Math.max(...(staleness(first) as number[]))).toBeGreaterThan(0);
    expect(Math.max(...(staleness(first) as number[]))).toBeLessThanOrEqual(bound);
    const adapter = flags.includes('--lora-rank') ? ['--lora-rank', '2'] : [];
    const steps = flags.includes('--max-steps') ? ['--max-steps', '12'] : [];
    const again = await async(second, [...adapter, ...steps, '--schedule', join(first, 'schedule.jsonl')]);
    expect(again.code, again.stderr).toBe(0);
    // Batches that were too stale are counted where they were sampled, and nobody samples them again.
    expect(comparable(second, /^num_tokens$/)).toEqual(comparable(first, /^num_tokens$/));
    if (name.startsWith('weights in flight')) {
      const switches = jsonLines(join(first, 'schedule.jsonl')).map((line) => (line.switches as unknown[]).length);
      expect(Math.max(...switches)).toBeGreaterThan(1);
    }
  });

  it('of a task goes as well: its rules stay with the trainer', async () => {
    const folder = at('task');
    const task = at('task.ts');
    writeFileSync(
      task,
      `const problems = Array.from({ length: 12 }, (_, i) => ({ question: String(i), answer: String(i) }));
      export const task = { load: () => ({ train: problems, test: problems }), reward: (text: string) => text.length / 100, verdict: () => 'wrong' };`,
    );
    const flags = [
      '--task',
      task,
      '--max-steps',
      '4',
      '--batch-size',
      '2',
      '--num-generations',
      '4',
      '--max-new-tokens',
      '16',
      '--eval-size',
      '2',
    ];
    const model = ['--model-name', MODEL, '--backend', BACKEND, '--output-dir', folder];
    const { code, stderr } = await run([...model, ...flags], { script });
    expect([code, stderr]).toEqual([0, '']);
    expect(jsonLines(join(folder, 'metrics.jsonl')).at(-1)).toMatchObject({ step: 4, 'rewards/accuracy/mean': 0 });
  });

  it('with a lag, or a schedule, is resumed to the bit', async () => {
    const [whole, cut, replayed] = [at('whole'), at('cut'), at('replayed')];
    const flags = ['--lag', '2', '--lr-scheduler', 'constant', '--warmup-steps', '0', '--save-steps', '3'];
    expect((await async(whole, flags)).code).toBe(0);
    expect((await async(cut, [...flags, '--max-steps', '5'])).code).toBe(0);
    const more = await async(cut, ['--resume', join(cut, 'checkpoint-3'), '--max-steps', '8']);
    expect([more.code, more.stderr]).toEqual([0, '']);
    expect(comparable(cut)).toEqual(comparable(whole));
    const schedule = ['--schedule', join(whole, 'schedule.jsonl')];
    expect((await async(replayed, [...schedule, '--max-steps', '5'])).code).toBe(0);
    expect((await async(replayed, ['--resume', join(replayed, 'checkpoint-3'), '--max-steps', '8'])).code).toBe(0);
    expect(comparable(replayed)).toEqual(comparable(whole));
    rmSync(join(cut, 'older_weights-6.safetensors'));
    const lost = await async(cut, ['--resume', join(cut, 'checkpoint-6'), ...schedule]);
    expect([lost.code, lost.stderr]).toEqual([
      2,
      expect.stringMatching(
        /^error: --schedule needs the weights after step 4, which the checkpoint of step 6 has not kept/,
      ),
    ]);
  });

  it('with a lag is the same each time, and as stale as it is said to be', async () => {
    const [first, second] = [at('lag'), at('lag again')];
    for (const folder of [first, second]) expect((await async(folder, ['--lag', '3'])).code).toBe(0);
    expect(comparable(second)).toEqual(comparable(first));
    expect(staleness(first)).toEqual([0, 1, 2, 3, 3, 3, 3, 3]);
    const timeline = jsonLines(join(first, 'timeline.jsonl'));
    expect(timeline.map(({ what }) => what)).toEqual(new Array(8).fill(['samples', 'trains']).flat());
    // What completions.jsonl has are the sampler's log-probs: of a policy that learns nothing while the lag lasts.
    const idle = at('lag, learning nothing');
    expect((await async(idle, ['--lag', '3', '--learning-rate', '0'])).code).toBe(0);
    const sampled = (folder: string) =>
      jsonLines(join(folder, 'completions.jsonl')).filter(({ step }) => Number(step) <= 4);
    expect(sampled(first)).toEqual(sampled(idle));
  });
});

describe('a reference', () => {
  it('that the sampler has says the same, and its schedule goes with options of its own run', async () => {
    const [trainer, sampler, again] = [at('reference'), at('reference of the sampler'), at('reference, again')];
    const flags = ['--kl-coef', '0.1', '--seed', '3'];
    expect((await async(trainer, [...flags, '--mode', 'sync'])).code).toBe(0);
    const { code, stderr } = await async(sampler, [...flags, '--max-staleness', '0', '--reference', 'sampler']);
    expect([code, stderr]).toEqual([0, '']);
    expect(comparable(sampler)).toEqual(comparable(trainer));
    // What is not typed is as in the run that the schedule is of.
    const repeated = ['--schedule', join(sampler, 'schedule.jsonl'), '--output-dir', again];
    expect((await runProcess([...NODE, script, ...repeated])).code).toBe(0);
    expect(comparable(again)).toEqual(comparable(trainer));
  });
});

describe('ranks below mpirun (skipped where there is no Open MPI)', () => {
  const ranks = (count: number, folder: string, flags: string[]) =>
    runProcess([...mpirun(count), ...NODE, script, ...SHORT, '--output-dir', folder, ...flags], { env: MPI });

  withMpi('sample one step ahead: that is --lag 1, to the bit; and without staleness --mode sync', async () => {
    const [ahead, lag, zero, sync] = [at('ranks'), at('lag 1'), at('ranks, no staleness'), at('sync, kl')];
    expect(await ranks(2, ahead, [])).toMatchObject({ code: 0, stderr: '' });
    expect((await async(lag, ['--lag', '1'])).code).toBe(0);
    expect(comparable(ahead)).toEqual(comparable(lag));
    const flags = ['--kl-coef', '0.1'];
    expect((await ranks(2, zero, [...flags, '--max-staleness', '0', '--reference', 'sampler'])).code).toBe(0);
    expect((await async(sync, [...flags, '--mode', 'sync'])).code).toBe(0);
    expect(comparable(zero)).toEqual(comparable(sync));
  });

  withMpi('share the problems of a batch: the same within rounding; and refuse what they cannot', async () => {
    const [folder, lag, more] = [at('three ranks'), at('lag 1, an adapter'), at('wrong ranks')];
    expect((await ranks(3, folder, ['--lora-rank', '2'])).code).toBe(0);
    expect((await async(lag, ['--lora-rank', '2', '--lag', '1'])).code).toBe(0);
    expect(staleness(folder)).toEqual([0, 1, 1, 1, 1, 1, 1, 1]);
    const [shared, whole] = [folder, lag].map((run) => comparable(run).metrics);
    expect(shared).toHaveLength(whole.length);
    for (const [i, row] of whole.entries()) {
      for (const name of ['reward', 'loss', 'grad_norm', 'entropy', 'importance/ess', 'completions/mean_length']) {
        expect(shared[i][name] ?? 0, `${name}, line ${i}`).toBeCloseTo(Number(row[name] ?? 0), 4);
      }
    }
    expect((await ranks(4, more, [])).stderr).toMatch(/3 ranks would share the 2 prompts of a batch: start at most 3/);
    for (const [flags, message] of [
      [['--lag', '1'], /--lag samples in one process, and there are 2 ranks/],
      [['--samplers', '2'], /--samplers is for samplers that a trainer starts, and 2 ranks are there already/],
      [['--max-staleness', '3'], /ranks sample no more than one step ahead: pass 0 or 1/],
    ] as const) {
      const { code, stderr } = await ranks(2, more, [...flags]);
      expect(code).toBe(2);
      expect(stderr).toMatch(message);
    }
  });
});

describe.skipIf(!existsSync('/proc/self'))('a process that goes (skipped where there is no /proc)', () => {
  it('sampler, killed: another takes its place, the run says so, and nothing is lost', async () => {
    const folder = at('killed sampler');
    const { code, stdout } = await async(
      folder,
      ['--max-staleness', '1', '--max-steps', '20'],
      async ({ pid }, ended) => {
        await until(() => lastStep(folder) >= 4, ended);
        process.kill(childrenOf(pid!)[0], 'SIGKILL');
      },
    );
    expect(code).toBe(0);
    expect(stdout).toMatch(/sampler 0 \(process \d+\) was ended by SIGKILL: it is started anew/);
    expect(lastStep(folder)).toBe(20);
    expect(jsonLines(join(folder, 'schedule.jsonl')).map(({ job }) => job)).toEqual(
      Array.from({ length: 20 }, (_, i) => i + 1),
    );
  });

  it('trainer, killed: its samplers end, and --resume goes on', async () => {
    const folder = at('killed trainer');
    let samplers: number[] = [];
    const flags = ['--samplers', '2', '--max-steps', '20', '--save-steps', '2'];
    const { signal, stderr } = await async(folder, flags, async (child, ended) => {
      await until(() => lastStep(folder) >= 5, ended);
      samplers = childrenOf(child.pid!);
      child.kill('SIGKILL');
    });
    expect([signal, stderr]).toEqual(['SIGKILL', '']);
    expect(samplers).toHaveLength(2);
    for (let i = 0; i < 100 && samplers.some(isAlive); i++) await sleep(100);
    expect(samplers.filter(isAlive)).toEqual([]);
    const more = await async(folder, ['--resume', folder, '--max-steps', '20', '--mode', 'sync']); // of what had two samplers
    expect(more.code, more.stderr).toBe(0);
    expect(lastStep(folder)).toBe(20);
    expect(jsonLines(join(folder, 'schedule.jsonl')).map(({ step }) => step)).toEqual(
      Array.from({ length: 20 }, (_, i) => i + 1),
    );
  });

  it('all, by Ctrl-C: the step is saved, nothing stays behind, and --resume goes on', async () => {
    const folder = at('interrupted');
    let samplers: number[] = [];
    const { code, stdout } = await async(folder, ['--max-steps', '40'], async ({ pid }, ended) => {
      await until(() => lastStep(folder) >= 3, ended);
      samplers = childrenOf(pid!);
      process.kill(-pid!, 'SIGINT'); // as a terminal sends it, to all of them
    });
    expect(code).toBe(130);
    expect(stdout).toMatch(/stopped; to continue: .*--resume/);
    for (let i = 0; i < 50 && samplers.some(isAlive); i++) await sleep(100);
    expect(samplers.filter(isAlive)).toEqual([]);
    expect((await async(folder, ['--resume', folder, '--max-steps', String(lastStep(folder) + 2)])).code).toBe(0);
  });
});

it.each([
  [['--mode', 'sync', '--lag', '2'], /--mode and --lag both say who samples/],
  [['--lag', '2', '--in-flight'], /--in-flight is for samplers, of which --lag has none/],
  [['--weight-sync-steps', '4'], /--weight-sync-steps 4 .* --max-staleness 2 allows: lower it to 3/],
  [['--in-flight', '--lora-rank', '2'], /--in-flight is for whole weights/],
  [['--backend', 'webgpu'], /samplers and trainer would share the first GPU .*--share-gpu/],
  [['--sampler-gpu', '1'], /--sampler-gpu 1: the backend \w+ uses no GPU/],
  [['--mode', 'sync', '--samplers', '2'], /--samplers is for samplers, of which --mode sync has none/],
  [['--schedule', '/nowhere.jsonl'], /--schedule: there is no file \/nowhere\.jsonl/],
  [['--lag', '2', '--max-staleness', '3'], /--max-staleness is for samplers, of which --lag has none/],
  [['--reference', 'sampler'], /--reference is for a KL to it, of which --kl-coef 0 has none/],
  [['--importance-cap', '0.5'], /--importance-cap.* must be a number from 1/],
  [['--schedule', 'package.json'], /package\.json:1: expected a JSON object|package\.json:\d+: /],
])('%j is refused in one sentence', async (flags, message) => {
  expect(await refused(flags)).toMatch(message);
});

it.each(['[[3,0]]', '[]', '[[0,5]]', '[[0,0],[4,0]]'])(
  'a schedule with switches %s is refused, with its line',
  async (switches) => {
    const file = at('odd.jsonl');
    writeFileSync(file, `{"step":1,"job":1,"switches":${switches}}\n`);
    expect(await refused(['--schedule', file])).toMatch(/odd\.jsonl:1: .*expected a step, a job and switches/);
  },
);

it('what a file says of samplers, where there are none, is named', async () => {
  const [config, folder] = [at('config.yaml'), at('config')];
  writeFileSync(config, 'lag: 1\nsamplers: 3\nin-flight: true\n');
  const { code, stdout } = await async(folder, ['--config', config, '--max-steps', '2']);
  expect(code).toBe(0);
  expect(stdout).toContain('not used here: --samplers, --in-flight, for samplers, of which --lag has none\n');
  // A schedule that was copied beside the run of something else is still a schedule.
  writeFileSync(at('config.json'), '{"experiment":"experiment_base","options":{}}');
  copyFileSync(join(folder, 'schedule.jsonl'), at('schedule.jsonl'));
  const again = await async(at('copied'), ['--schedule', at('schedule.jsonl'), '--max-steps', '2']);
  expect([again.code, again.stderr]).toEqual([0, '']);
  expect(comparable(at('copied'))).toEqual(comparable(folder));
});

it('a schedule that is too short is refused, with what to do', async () => {
  const file = at('short.jsonl');
  writeFileSync(file, '{"step":1,"job":1,"switches":[[0,0]]}\n');
  expect(await refused(['--schedule', file])).toMatch(
    /short\.jsonl has no step 2: resume that run .*, or lower --max-steps 8/,
  );
});
