import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type BackendName, initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { shard } from '../lib/distributed/communicator.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { uniform } from '../lib/random.ts';
import { writeTestData, writeTestModel } from '../testing/model.ts';
import {
  BACKEND,
  type During,
  holds,
  lastStep,
  NODE,
  results,
  runProcess,
  sleep,
  TSX,
  until,
} from '../testing/processes.ts';
import { createCommand, type Draw, type Rollout, rollout } from './train.ts';

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
/** Open MPI refuses to run as root, as in a container, unless told so. */
const MPI = { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' };
const MPIRUN = ['mpirun', '--oversubscribe', '-np', '2'];
const withMpi = spawnSync('mpirun', ['--version']).stdout?.includes('Open MPI') ? it : it.skip;

it('a rank samples for its problems what a single process samples for them', async () => {
  await initBackend((process.env.TFJS_BACKEND as BackendName) ?? 'wasm');
  const model = await loadCheckpoint(at('model'));
  const tokenizer = await loadTokenizer(at('model'));
  const options = parseOptions(createCommand(), ['node', 'train.ts', ...TINY, '--num-generations', '4']);
  const problems = loadProblems(at('data.jsonl')).slice(0, 5);
  const draw: Draw = (...token) => uniform(0, 3, ...token);
  const whole = await rollout(model, tokenizer, problems, draw, options);
  const parts = [0, 1, 2].map((rank) => shard({ rank, size: 3 }, problems.length));
  const sharded = parts.map(({ begin, end }) => {
    const own: Draw = (problem, ...token) => draw(begin + problem, ...token);
    return rollout(model, tokenizer, problems.slice(begin, end), own, options);
  });
  // Log-probs may round differently in a batch of another size.
  const essence = (rollouts: Rollout[]) => rollouts.map(({ completion, reward }) => ({ completion, reward }));
  expect(essence((await Promise.all(sharded)).flat())).toEqual(essence(whole));
});

describe.concurrent('any number of ranks', () => {
  // The bundled model: with the random one, whose rewards are rare, Adam would make updates of what is only rounding.
  const WORK =
    `--backend ${BACKEND} --eval-size 16 --max-steps 5 --batch-size 5 --num-generations 4 --mini-batch-size 10 --kl-coef 0.05 --eval-steps 2`.split(
      ' ',
    );
  const ddp = [...NODE, 'experiment_ddp/train.ts', ...WORK, '--check-sync-steps', '1'];
  const runBase = async (name: string, flags: string[]) => {
    const folder = at(name);
    const command = [...NODE, 'experiment_base/train.ts', ...WORK, ...flags, '--output-dir', folder];
    expect(await runProcess(command)).toMatchObject({ code: 0, stderr: '' });
    return results(folder);
  };
  let whole: Promise<ReturnType<typeof results>>;
  const base = () => {
    whole ??= runBase('base', []);
    return whole;
  };

  const expectSame = async (name: string, command: string[], reference = base()) => {
    const folder = at(name);
    const { code, stderr } = await runProcess([...command, '--output-dir', folder], { env: MPI });
    expect({ code, stderr: said(stderr) }).toEqual({ code: 0, stderr: '' });
    const [found, expected] = [results(folder), await reference];
    expect(found.completions).toBe(expected.completions);
    expect(found.metrics.map((row) => Object.keys(row))).toEqual(expected.metrics.map((row) => Object.keys(row)));
    for (const [i, row] of expected.metrics.entries()) {
      for (const [metric, value] of Object.entries(row)) {
        if (typeof value !== 'number') expect(found.metrics[i][metric]).toEqual(value);
        else {
          const difference = Math.abs((found.metrics[i][metric] as number) - value);
          expect(difference, `${metric}, step ${i}`).toBeLessThan(1e-5 * Math.max(1, Math.abs(value)));
        }
      }
    }
    // Else this would show nothing: completions are of unequal lengths, and the policy moves.
    const lengths = expected.completions.matchAll(/"tokens":(\d+)/g);
    expect(new Set([...lengths].map(([, length]) => length)).size).toBeGreaterThan(2);
    expect(expected.metrics.slice(1).every(({ grad_norm }) => Number(grad_norm) > 0)).toBe(true);
  };

  it.each([1, 2, 3, 5])('%d: the completions and metrics of experiment_base', (count) =>
    expectSame(`${count} ranks`, [...ddp, ...nproc(count)]),
  );
  it('2, with an adapter: the completions and metrics of experiment_base', () => {
    const adapter = ['--lora-rank', '4', '--learning-rate', '0.001'];
    return expectSame('adapted', [...ddp, ...nproc(2), ...adapter], runBase('adapted base', adapter));
  });
  withMpi('2 below mpirun: the completions and metrics of experiment_base', () =>
    expectSame('mpi', [...MPIRUN, ...ddp]),
  );
});

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
    const match = find()!;
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
      return wait(new RegExp(`rank ${killed} waits: sum of 6 numbers`));
    },
    'while saving': async (killed, folder, child, ended) => {
      const pid = await afterStep(follow(child, ended), killed, 2);
      await until(() => holds(folder, /^\.checkpoint-.*partial$/), ended);
      return pid;
    },
  };

  it.each(Object.entries(MOMENTS))(
    '%s, ten times: all end within seconds, and resume continues',
    async (name, moment) => {
      const folder = at(name);
      const flags = [...nproc(2), ...MANY_STEPS, '--save-steps', '1', '--eval-steps', '0'];
      let [slowest, step] = [0, 0];
      for (let i = 0; i < 10; i++) {
        const resume = existsSync(join(folder, 'config.json')) ? ['--resume', folder] : ['--output-dir', folder];
        const killed = i % 2;
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
        expect(code).toBe(1);
        const said = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('COMMUNICATOR'));
        expect(said).toEqual([
          expect.stringContaining(`error: rank ${killed} was ended by SIGKILL, so all ranks were stopped`),
        ]);
        // What is there can be gone on from, and nothing is lost that was there before.
        const checkpoints = readdirSync(folder).filter((file) => file.startsWith('checkpoint-'));
        for (const checkpoint of checkpoints)
          expect(holds(join(folder, checkpoint), /^training_state.json$/)).toBe(true);
        const newest = Math.max(0, ...checkpoints.map((checkpoint) => Number(checkpoint.slice(11))));
        expect(newest).toBeGreaterThanOrEqual(step);
        step = newest;
      }
      expect(slowest).toBeLessThan(10_000);
      expect(step).toBeGreaterThan(0);
      const last = ['--max-steps', String(step + 2)];
      expect(await runProcess([...DDP, '--resume', folder, ...last])).toMatchObject({ code: 0, stderr: '' });
      const whole = at(`${name}, whole`);
      await runProcess([...DDP, ...flags, ...last, '--output-dir', whole]);
      expect(results(folder)).toEqual(results(whole));
    },
  );

  withMpi('below mpirun: all end within seconds', async () => {
    const folder = at('killed below mpirun');
    let began = 0;
    const during: During = async (child, ended) => {
      process.kill(await follow(child, ended)(/rank 1 goes on: sum of 1 numbers/), 'SIGKILL');
      began = performance.now();
    };
    const { code } = await runProcess(
      [...MPIRUN, ...DDP, ...MANY_STEPS, '--max-steps', '500', '--output-dir', folder],
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
  const LONG = [...nproc(2), ...'--batch-size 32 --max-steps 1000 --eval-steps 0 --save-steps 0'.split(' ')];
  /** What a terminal does: every process of the group gets the signal. */
  const interrupt = (child: Parameters<During>[0]) => process.kill(-child.pid!, 'SIGINT');

  it.each([
    ['node --import tsx', NODE],
    ['tsx', TSX],
  ])('finishes the step, saves and says how to resume, which any number of ranks can: %s', async (name, command) => {
    const folder = at(`interrupted ${name}`);
    const ddp = [...command, ...DDP.slice(NODE.length)];
    const during: During = async (child, ended) => {
      await until(() => lastStep(folder) >= 1, ended);
      interrupt(child);
    };
    const { code, stdout, stderr } = await runProcess([...ddp, ...LONG, '--output-dir', folder], { during });
    expect({ code, stderr: stderr.trim() }).toEqual({
      code: 130,
      stderr: expect.stringMatching(/^finishing this step.*$/),
    });
    expect(stdout).toContain(`node --import tsx experiment_ddp/train.ts --resume '${folder}'\n`);
    const step = lastStep(folder);
    expect(readdirSync(folder)).toContain(`checkpoint-${step}`);
    const on = ['--resume', folder, ...nproc(3), '--max-steps', String(step + 1)];
    const resumed = await runProcess([...ddp, ...on]);
    expect({ code: resumed.code, stderr: said(resumed.stderr) }).toEqual({ code: 0, stderr: '' });
    expect(lastStep(folder)).toBe(step + 1);
  });

  it('pressed twice stops at once', async () => {
    const folder = at('stopped');
    let pressed = 0;
    const during: During = async (child, ended) => {
      let noted = false;
      child.stderr!.on('data', (data) => {
        noted ||= String(data).includes('finishing this step');
      });
      await until(() => lastStep(folder) >= 1, ended);
      interrupt(child);
      await until(() => noted, ended);
      await sleep(500); // less counts as the same press
      interrupt(child);
      pressed = performance.now();
    };
    const { code } = await runProcess([...DDP, ...LONG, '--output-dir', folder], { during });
    expect(code).toBe(130);
    expect(performance.now() - pressed).toBeLessThan(2000);
    expect(holds(folder, /checkpoint/)).toBe(false);
  });

  it('pressed twice stops at once, also in training, which lets no signal through', async () => {
    const folder = at('stopped in training');
    let pressed = 0;
    const during: During = async (child, ended) => {
      await until(() => lastStep(folder) >= 0, ended);
      await sleep(3000); // sampling is over, and a hundred passes take longer than this test
      interrupt(child);
      await sleep(600);
      interrupt(child);
      pressed = performance.now();
    };
    const long = [...LONG, '--num-iterations', '100', '--output-dir', folder];
    const { code, stderr } = await runProcess([...TSX, ...DDP.slice(NODE.length), ...long], { during });
    expect({ code, errors: stderr.match(/^error/gm) }).toEqual({ code: 130, errors: null });
    expect(performance.now() - pressed).toBeLessThan(2000);
    expect(holds(folder, /checkpoint/)).toBe(false);
  });
});

describe.concurrent('bad input ends with one sentence, whoever sees it', () => {
  it.each([
    ['unknown option', ['--nprocs', '2'], /unknown option '--nprocs'.*Did you mean --nproc\?/],
    ['no rank', ['--nproc', '0'], /--nproc.*from 1 to/],
    ['more ranks than prompts', ['--nproc', '64'], /--nproc 64 is more than the 32 prompts of a step/],
    ['missing data set', ['--dataset', at('none.jsonl')], /cannot read the data set .*none\.jsonl/],
    ['missing model', ['--model-name', at('none')], /none/],
    ['updates that do not divide', ['--mini-batch-size', '7'], /must divide into updates of 7/],
  ])('%s', async (name, flags, message) => {
    const folder = at('refused', name);
    const { code, stdout, stderr } = await runProcess([...DDP, '--output-dir', folder, ...flags]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
    expect(stderr).toMatch(message);
    expect(existsSync(folder)).toBe(false);
  });
});
