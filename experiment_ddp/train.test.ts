import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { writeTestData, writeTestModel } from '../testing/model.ts';
import { MPI, mpirun, withMpi } from '../testing/mpi.ts';
import {
  BACKEND,
  type During,
  holds,
  lastStep,
  NODE,
  REPEATS,
  results,
  runProcess,
  sleep,
  TSX,
  until,
} from '../testing/processes.ts';

// The script as a user runs it, with a random model so small that a step takes milliseconds.

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));

beforeAll(async () => {
  await writeTestModel(at('model'));
  writeTestData(at('data.jsonl'), 12);
});

const TINY =
  `--model-name ${at('model')} --dataset ${at('data.jsonl')} --backend ${BACKEND} --eval-size 4 --max-new-tokens 16`.split(
    ' ',
  );
const DDP = [...NODE, 'experiment_ddp/train.ts', ...TINY];
const nproc = (count: number) => ['--nproc', String(count)];
/** More ranks than this machine has cores are warned of. */
const said = (stderr: string) => stderr.replace(/^warning: \d+ ranks share \d+ cores: .*\n/, '');

/** Ranks say with this what they wait for. */
const TRACE = { NODE_DEBUG: 'communicator' };
const MANY_STEPS = '--batch-size 3 --num-generations 4 --lr-scheduler constant --learning-rate 0.01'.split(' ');

/** Follows what ranks wait for: each call finds the next line that matches, and the process that wrote it. */
function follow(child: Parameters<During>[0], ended: () => boolean) {
  let text = '';
  child.stderr!.on('data', (data) => {
    text += data;
  });
  return async (pattern: RegExp): Promise<number> => {
    const find = () => new RegExp(`^COMMUNICATOR (\\d+): ${pattern.source}`, 'm').exec(text);
    await until(() => find() !== null, ended);
    const match = find();
    if (!match) throw new Error(`ended before it said ${pattern.source}: ${text}`);
    text = text.slice(match.index + match[0].length);
    return Number(match[1]);
  };
}

describe.concurrent('a rank that is killed (-9)', () => {
  type Moment = (killed: number, folder: string, ...args: Parameters<During>) => Promise<number>;
  const AGREED = 'goes on: sum of 1 numbers'; // on whether to stop: at the start, after each step, and after each save
  const afterStep = async (wait: ReturnType<typeof follow>, rank: number, times: number): Promise<number> => {
    let pid = 0;
    for (let i = 0; i < times; i++) pid = await wait(new RegExp(`rank ${rank} ${AGREED}`));
    return pid;
  };
  const MOMENTS: Record<string, Moment> = {
    'while sampling': async (killed, _, child, ended) => {
      const pid = await afterStep(follow(child, ended), killed, 3);
      await sleep(10 * Math.random());
      return pid;
    },
    'while reducing': async (killed, _, child, ended) => {
      const wait = follow(child, ended);
      await afterStep(wait, 1 - killed, 3);
      // The other rank is stopped once all have sampled, so that this one is sure to be waiting for its gradient.
      process.kill(await wait(new RegExp(`rank ${1 - killed} goes on: sum of 48 numbers`)), 'SIGSTOP');
      return wait(new RegExp(`rank ${killed} waits: sum of \\d+ numbers`));
    },
    'while saving': async (killed, folder, child, ended) => {
      const pid = await afterStep(follow(child, ended), killed, 2);
      await until(() => holds(folder, /^\.checkpoint-.*partial$/), ended);
      return pid;
    },
  };
  /** Each rank at each moment, so many times. */
  const KILLS = Array.from({ length: REPEATS }, () =>
    Object.entries(MOMENTS).flatMap(([name, moment]) => [0, 1].map((killed) => ({ name, moment, killed }))),
  ).flat();

  it('again and again, at any moment: all end within seconds, and resume continues', async () => {
    const folder = at('killed');
    const flags = [...nproc(2), ...MANY_STEPS, '--save-steps', '1', '--eval-steps', '0'];
    let [slowest, step] = [0, 0];
    for (const { name, moment, killed } of KILLS) {
      const resume = existsSync(join(folder, 'config.json')) ? ['--resume', folder] : ['--output-dir', folder];
      let began = 0;
      const during: During = async (child, ended) => {
        const pid = await moment(killed, folder, child, ended);
        process.kill(pid, 'SIGKILL');
        began = performance.now();
      };
      const { code, stderr } = await runProcess([...DDP, ...flags, '--max-steps', '500', ...resume], {
        during,
        env: TRACE,
      });
      slowest = Math.max(slowest, performance.now() - began);
      expect(code, name).toBe(1);
      const said = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('COMMUNICATOR'));
      expect(said).toEqual([
        expect.stringContaining(`error: rank ${killed} was ended by SIGKILL, so all ranks were stopped`),
      ]);
      // What is there can be gone on from, and nothing is lost that was there before.
      const checkpoints = readdirSync(folder).filter((file) => file.startsWith('checkpoint-'));
      for (const checkpoint of checkpoints) expect(holds(join(folder, checkpoint), /^training_state.json$/)).toBe(true);
      const newest = Math.max(0, ...checkpoints.map((checkpoint) => Number(checkpoint.slice(11))));
      expect(newest).toBeGreaterThanOrEqual(step);
      step = newest;
    }
    expect(slowest).toBeLessThan(10_000);
    expect(step).toBeGreaterThan(0);
    const last = ['--max-steps', String(step + 2)];
    expect(await runProcess([...DDP, '--resume', folder, ...last])).toMatchObject({ code: 0, stderr: '' });
    const whole = at('whole');
    await runProcess([...DDP, ...flags, ...last, '--output-dir', whole]);
    expect(results(folder)).toEqual(results(whole));
  });

  withMpi('below mpirun: all end within seconds', async () => {
    const folder = at('killed below mpirun');
    let began = 0;
    const during: During = async (child, ended) => {
      process.kill(await follow(child, ended)(/rank 1 goes on: sum of 1 numbers/), 'SIGKILL');
      began = performance.now();
    };
    const { code } = await runProcess(
      [...mpirun(2), ...DDP, ...MANY_STEPS, '--max-steps', '500', '--output-dir', folder],
      {
        during,
        env: { ...MPI, ...TRACE },
      },
    );
    expect(code).not.toBe(0);
    expect(performance.now() - began).toBeLessThan(10_000);
  });
});

describe.concurrent('Ctrl-C', () => {
  const LONG = [...nproc(2), ...'--batch-size 16 --max-steps 1000 --eval-size 0 --save-steps 0'.split(' ')];
  /** What a terminal does: every process of the group gets the signal. */
  const interrupt = (child: Parameters<During>[0]) => process.kill(-child.pid!, 'SIGINT');

  it.each([
    ['node --import tsx', NODE],
    ['tsx', TSX],
  ])('finishes the step, saves and says how to resume, which any number of ranks can: %s', async (name, command) => {
    const folder = at(`interrupted ${name}`);
    const during: During = async (child, ended) => {
      await until(() => lastStep(folder) >= 1, ended);
      interrupt(child);
    };
    const ddp = [...command, ...DDP.slice(NODE.length)];
    const { code, stdout, stderr } = await runProcess([...ddp, ...LONG, '--output-dir', folder], { during });
    expect({ code, stderr: stderr.trim() }).toEqual({
      code: 130,
      stderr: expect.stringMatching(/^finishing this step.*$/),
    });
    expect(stdout).toContain(`node --import tsx experiment_ddp/train.ts --resume '${folder}'\n`);
    const step = lastStep(folder);
    expect(readdirSync(folder)).toContain(`checkpoint-${step}`);
    const on = ['--resume', folder, ...nproc(name === 'tsx' ? 1 : 3), '--max-steps', String(step + 1)];
    const resumed = await runProcess([...DDP, ...on]);
    expect({ code: resumed.code, stderr: said(resumed.stderr) }).toEqual({ code: 0, stderr: '' });
    expect(lastStep(folder)).toBe(step + 1);
  });

  it.each([
    ['', NODE],
    [', also in training, which lets no signal through', TSX],
  ])('pressed twice stops at once%s', async (name, command) => {
    const folder = at(`stopped${name}`);
    let pressed = 0;
    const during: During = async (child, ended) => {
      // What rank 0 knows of all 128 rollouts, four numbers of each: training comes next.
      await follow(child, ended)(/rank 0 goes on: sum of 512 numbers/);
      interrupt(child);
      await sleep(500); // less counts as the same press
      interrupt(child);
      pressed = performance.now();
    };
    const line = [...command, ...DDP.slice(NODE.length), ...LONG, '--num-iterations', '100', '--output-dir', folder];
    const { code, stderr } = await runProcess(line, { during, env: TRACE });
    expect({ code, errors: stderr.match(/^error/gm) }).toEqual({ code: 130, errors: null });
    expect(performance.now() - pressed).toBeLessThan(10_000); // the step takes a minute and more
    expect(holds(folder, /checkpoint/)).toBe(false);
  });
});

describe.concurrent('bad input ends with one sentence, whoever sees it', () => {
  it.each([
    ['the launcher', ['--nproc', '64'], /--nproc 64 is more than the 32 prompts of a step/],
    ['the ranks', ['--dataset', at('none.jsonl')], /cannot read the data set .*none\.jsonl/],
  ])('%s', async (name, flags, message) => {
    const folder = at('refused', name);
    const { code, stdout, stderr } = await runProcess([...DDP, '--output-dir', folder, ...flags]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
    expect(stderr).toMatch(message);
    expect(existsSync(folder)).toBe(false);
  });
});
