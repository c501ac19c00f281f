import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { NODE, runProcess } from '../../testing/processes.ts';
import { UserError } from '../errors.ts';
import { readNewerWeights, startSamplers, writeWeights } from './samplers.ts';

const temp = mkdtempSync(join(tmpdir(), 'samplers-'));
afterAll(() => rmSync(temp, { recursive: true }));

it('weights are read as they were written, and only if they are newer', () => {
  const values = Float32Array.of(1.5, -2, 1e-30);
  writeWeights(temp, { version: 7, values });
  expect(readNewerWeights(temp, 6)).toEqual({ version: 7, values });
  expect(readNewerWeights(temp, -1)).toEqual({ version: 7, values });
  expect(readNewerWeights(temp, 7)).toBeUndefined();
});

it('weights are never torn, however often they change while they are read', async () => {
  const folder = mkdtempSync(join(temp, 'torn-'));
  const script = join(temp, 'writer.ts');
  const module = pathToFileURL(join(import.meta.dirname, 'samplers.ts')).href;
  writeFileSync(
    script,
    `import { writeWeights } from '${module}';
    for (let version = 0; version < 400; version++) {
      writeWeights('${folder}', { version, values: new Float32Array(200_000 + version).fill(version) });
    }`,
  );
  let [reads, version] = [0, -1];
  const read = () => {
    let weights: ReturnType<typeof readNewerWeights>;
    try {
      weights = readNewerWeights(folder, version);
    } catch {
      return; // there are none yet
    }
    if (!weights) return;
    expect(weights.version).toBeGreaterThan(version);
    version = weights.version;
    expect(weights.values).toHaveLength(200_000 + version);
    expect(weights.values.every((value) => value === version)).toBe(true);
    reads++;
  };
  const { code } = await runProcess([...NODE, script], {
    during: async (_, ended) => {
      while (!ended()) {
        read();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    },
  });
  expect(code).toBe(0);
  read();
  expect(version).toBe(399);
  expect(reads).toBeGreaterThan(10);
});

describe('samplers', () => {
  /** Samplers whose jobs are: a number is doubled; below 0 it dies, from 100 on it hangs, each time but the last. */
  function begin(size: number, { patience = 30, times = 1 } = {}) {
    const script = join(temp, 'sampler.mts');
    const marks = mkdtempSync(join(temp, 'marks-'));
    const here = (name: string) => pathToFileURL(join(import.meta.dirname, name)).href;
    writeFileSync(
      script,
      `import { appendFileSync, existsSync, readFileSync } from 'node:fs';
      import { serveJobs } from '${here('samplers.ts')}';
      import { UserError } from '${here('../errors.ts')}';
      await serveJobs(async ({ marks, times }) => async (job) => {
        const file = marks + '/' + job;
        appendFileSync(file, 'x');
        const isLast = readFileSync(file, 'utf8').length > times;
        if (job < 0 && !isLast) process.exit(9);
        if (job === 1000) throw new UserError('the user is wrong');
        if (job === 1001) throw new TypeError('we are wrong');
        if (job >= 100 && !isLast) for (;;);
        return { doubled: 2 * job };
      });`,
    );
    const said: string[] = [];
    let free = () => {};
    const onFree = () => free();
    const command = [...NODE, script];
    const say = (line: string) => said.push(line);
    const samplers = startSamplers<{ doubled: number }>(size, {
      setup: { marks, times },
      bytes: 100,
      say,
      onFree,
      patience,
      command,
    });
    const give = async (job: number) => {
      while (!samplers.tryStart(job)) {
        await new Promise<void>((resolve) => {
          free = resolve;
        });
      }
    };
    return { samplers, give, said };
  }

  it('do each job once, whoever does it, and hold no more than two', async () => {
    const { samplers, give } = begin(2);
    for (let job = 1; job <= 6; job++) await give(job);
    const done: { job: number; began: number; ended: number }[] = [];
    for (let i = 1; i <= 6; i++) {
      const { result, ...rest } = await samplers.next();
      expect(result).toEqual({ doubled: 2 * rest.job });
      expect(rest.ended).toBeGreaterThanOrEqual(rest.began);
      done.push(rest);
    }
    expect(done.map(({ job }) => job).sort()).toEqual([1, 2, 3, 4, 5, 6]);
    expect(samplers.waiting()).toBe(0);
    samplers.close();
  });

  it('that die are started anew, with all jobs that they had', async () => {
    const { samplers, give, said } = begin(1);
    await give(-1);
    await give(7);
    expect([(await samplers.next()).job, (await samplers.next()).job]).toEqual([-1, 7]);
    expect(said).toEqual([
      expect.stringMatching(/^sampler 0 \(process \d+\) ended with exit code 9: it is started anew, and what/),
    ]);
    samplers.close();
  });

  it('that hang are noticed, also in their first job', async () => {
    const { samplers, give, said } = begin(1, { patience: 3 });
    await give(100);
    expect((await samplers.next()).result).toEqual({ doubled: 200 });
    expect(said[0]).toMatch(/does not answer: it is ended/);
    samplers.close();
  }, 30_000);

  it('that die again and again end the run, with what to do', async () => {
    const { samplers, give } = begin(1, { times: 9 });
    await give(-1);
    await expect(samplers.next()).rejects.toThrow(/3 times in a row without having finished anything.*--mode sync/);
    samplers.close();
  });

  it("tell mistakes of the user's from our own", async () => {
    for (const [job, kind] of [
      [1000, UserError],
      [1001, Error],
    ] as const) {
      const { samplers, give } = begin(1);
      await give(job);
      const error = await samplers.next().catch((error) => error);
      expect(error).toBeInstanceOf(kind);
      expect(error instanceof UserError).toBe(job === 1000);
      if (job === 1001) expect(error.stack).toMatch(/sampler\.mts/);
      samplers.close();
    }
  });

  it('leave nothing behind, and clear away what the dead have left', async () => {
    const place = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
    const dead = join(place, 'grpo-weights-999999999-x');
    mkdirSync(dead);
    const { samplers } = begin(1);
    expect(existsSync(dead)).toBe(false);
    const own = () => readdirSync(place).filter((name) => name.startsWith(`grpo-weights-${process.pid}-`));
    const before = own().length;
    expect(before).toBeGreaterThan(0);
    samplers.close();
    expect(own().length).toBe(before - 1);
  });
});
