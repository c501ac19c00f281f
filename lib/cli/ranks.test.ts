import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type During, NODE, REPOSITORY, runProcess, until } from '../../testing/processes.ts';
import { threadLimits } from '../backend/threads.ts';
import { visibleDevice } from '../distributed/local.ts';
import { physicalCores } from '../machine.ts';

// Ranks are processes: each test writes the script that they run.

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** A script whose ranks run `body`, where `ranks` is their communicator. */
function script(name: string, body: string, options = ''): string {
  const file = join(temp, `${name.replaceAll(/\W/g, '_')}.mts`);
  const from = (path: string) => JSON.stringify(join(REPOSITORY, path));
  writeFileSync(
    file,
    `import { fromRankZero } from ${from('lib/distributed/communicator.ts')};
import { runRanks } from ${from('lib/cli/ranks.ts')};
import { UserError } from ${from('lib/errors.ts')};
await runRanks(import.meta.url, async (ranks) => {${body}}, () => Number(process.argv[2]), {${options}});`,
  );
  return file;
}

const found = (command: string) => spawnSync(command, ['--version']).status === 0;
const MPIRUN = [
  ['Open MPI', 'mpirun.openmpi', ['--oversubscribe']],
  ['MPICH', 'mpirun.mpich', []],
] as const;
/** Open MPI refuses to run as root, as in a container, unless told so. */
const MPI = { env: { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' } };

const LAUNCHERS: [string, (file: string, size: number) => string[], boolean][] = [
  ['local', (file, size) => [...NODE, file, String(size)], true],
  ...MPIRUN.map(([name, mpirun, flags]): (typeof LAUNCHERS)[number] => [
    name,
    (file, size) => [mpirun, ...flags, '-np', String(size), ...NODE, file],
    found(mpirun),
  ]),
];

describe.concurrent.each(LAUNCHERS)('ranks: %s', (launcher, command, present) => {
  const test = present ? it : it.skip; // without that launcher on this machine

  test('sum, broadcast and wait, whatever the sizes', async () => {
    const file = script(
      `collectives ${launcher}`,
      `
      const { rank, size } = ranks;
      const total = (size * (size - 1)) / 2;
      for (const length of [1, 3, 1000, 300_007]) {
        const values = Float32Array.from({ length: length + 2 }, (_, i) => i % 7 + rank);
        const part = values.subarray(1, length + 1); // a view: what is around it stays
        await ranks.allReduceSum(part);
        const right = part.every((value, i) => value === size * ((i + 1) % 7) + total);
        if (!right || values[0] !== rank || values.at(-1) !== (length + 1) % 7 + rank) throw new Error('sum of ' + length);
        const bytes = Uint8Array.from({ length }, (_, i) => i + 5 * rank);
        await ranks.broadcast(bytes);
        if (!bytes.every((value, i) => value === i % 256)) throw new Error('broadcast of ' + length);
      }
      await ranks.broadcast(new Uint8Array(0));
      const shared = await fromRankZero(ranks, () => ({ text: 'wörld', from: rank }));
      if (shared.text !== 'wörld' || shared.from !== 0) throw new Error('from rank 0');
      await ranks.barrier();
      process.stdout.write('rank ' + rank + ' of ' + size + ' is right\\n');`,
    );
    for (const size of [2, 3]) {
      const { code, stdout, stderr } = await runProcess(command(file, size), MPI);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      const expected = Array.from({ length: size }, (_, rank) => `rank ${rank} of ${size} is right`);
      expect(stdout.trim().split('\n').sort()).toEqual(expected);
    }
  });

  const WAITING = 'await ranks.barrier(); await ranks.barrier();';
  test.each([
    [
      'a mistake of the user',
      `if (ranks.rank === 1) throw new UserError('no such thing'); ${WAITING}`,
      /^error: no such thing$/m,
      2,
    ],
    [
      'the same mistake on all ranks',
      `throw new UserError('rank ' + ranks.rank + ' sees it');`,
      /^error: rank 0 sees it$/m,
      2,
    ],
    ['a bug', `if (ranks.rank === 1) undefined.length; ${WAITING}`, /rank 1: TypeError.*\n +at /, 1],
    ['exit', `if (ranks.rank === 1) process.exit(3); ${WAITING}`, undefined, undefined],
    ['SIGKILL', `if (ranks.rank === 1) process.kill(process.pid, 'SIGKILL'); ${WAITING}`, undefined, undefined],
    [
      'weights that differ',
      `const { checkInSync } = await import(${JSON.stringify(join(REPOSITORY, 'lib/distributed/state.ts'))});
       const weights = (last) => ({ w: { data: async () => Float32Array.of(1, last) } });
       await checkInSync(ranks, weights(2), 6);
       await checkInSync(ranks, weights(ranks.rank), 7);`,
      /^error: after step 7 the weights of rank 1 are not those of rank 0/m,
      2,
    ],
  ])('of which one ends by %s are all ended', async (name, body, message, expected) => {
    let began = 0;
    const during: During = async () => {
      began = performance.now(); // its turn has come
    };
    const { code, signal, stderr } = await runProcess(command(script(`${name} ${launcher}`, body), 2), {
      ...MPI,
      during,
    });
    expect(signal ?? code).not.toBe(0);
    if (expected !== undefined) expect(code).toBe(expected);
    if (message) expect(stderr).toMatch(message);
    if (launcher === 'local') {
      expect(stderr).toMatch(message ?? /^error: rank 1 (was ended by SIGKILL|ended with exit code 3), so all/);
      expect(stderr.match(/^error: /gm)).toHaveLength(1);
    }
    expect(performance.now() - began).toBeLessThan(20_000); // the start included
  });
});

describe.concurrent('below mpirun', () => {
  const wait = script('mpi', 'await ranks.barrier();');
  const mpirun = ['mpirun.openmpi', '--oversubscribe', '-np', '2', ...NODE, wait];
  const test = found('mpirun.openmpi') ? it : it.skip;

  test('a library that is not there is named', async () => {
    const { code, stderr } = await runProcess(mpirun, { env: { ...MPI.env, MPI_LIBRARY: 'libnone.so' } });
    expect(code).toBe(2);
    expect(stderr).toMatch(
      /^error: started by an MPI launcher, but no MPI library can be loaded \(tried libnone\.so\)/m,
    );
  });

  (found('mpirun.mpich') ? test : it.skip)('a library of another MPI is noticed', async () => {
    const { code, stderr } = await runProcess(mpirun, { env: { ...MPI.env, MPI_LIBRARY: 'libmpich.so.12' } });
    expect(code).not.toBe(0);
    expect(stderr).toMatch(
      /^error: the launcher has started 2 ranks, but to the MPI library libmpich\.so\.12 there is 1/m,
    );
  });
});

describe.concurrent('local ranks', () => {
  it('of Slurm without MPI are refused', async () => {
    const env = { SLURM_STEP_NUM_TASKS: '2' };
    const { code, stderr } = await runProcess([...NODE, script('slurm', ''), '2'], { env });
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: Slurm has started several tasks, but without MPI between them: .*--mpi=pmix/);
  });

  it('that make different calls are ended with one sentence', async () => {
    const body = 'await (ranks.rank === 0 ? ranks.barrier() : ranks.broadcast(new Uint8Array(9)));';
    const { code, stderr } = await runProcess([...NODE, script('different', body), '2']);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^error: .*ranks made different calls: \[\[1,4\],\[2,9\]\]\n$/);
  });

  const stops = process.platform === 'win32' ? it.skip : it;
  stops('of which one is stopped (SIGSTOP) are ended after a while, and it is named', async () => {
    const body = `if (ranks.rank === 1) process.kill(process.pid, 'SIGSTOP'); await ranks.barrier(); await ranks.barrier();`;
    const { code, stderr } = await runProcess([...NODE, script('stopped', body, 'stopped: 2'), '3']);
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^error: rank 1 \(process \d+\) has been stopped \(SIGSTOP\) for 2 seconds, so all ranks were ended: --resume .*\n$/,
    );
  });

  (process.platform === 'linux' ? it : it.skip)('of which one is stopped and continued go on', async () => {
    const body = `
      if (ranks.rank === 1) {
        const { spawn } = await import('node:child_process');
        spawn('sh', ['-c', 'while ! grep -q "^State:.T" /proc/$0/status; do sleep 0.1; done; kill -CONT $0', process.pid]);
        process.kill(process.pid, 'SIGSTOP');
      }
      await ranks.barrier();`;
    const { code, stderr } = await runProcess([...NODE, script('continued', body), '2']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  });

  it('share the cores and the GPUs', async () => {
    const body = `process.stdout.write([ranks.rank, process.env.WASM_NUM_THREADS, process.env.TF_NUM_INTRAOP_THREADS, process.env.CUDA_VISIBLE_DEVICES] + '\\n');`;
    const env = { WASM_NUM_THREADS: '7', CUDA_VISIBLE_DEVICES: '5,3' };
    const { stdout } = await runProcess([...NODE, script('share', body), '3'], { env });
    const threads = `7,${Math.max(1, Math.floor(physicalCores() / 3))}`; // what the user has set stays
    const expected = [`0,${threads},5`, `1,${threads},3`, `2,${threads},5`];
    expect(stdout.trim().split('\n').sort()).toEqual(expected);
    expect(threadLimits(1)).toEqual({});
    process.env.CUDA_VISIBLE_DEVICES = '';
    expect(visibleDevice(1)).toBe(''); // none is allowed
    delete process.env.CUDA_VISIBLE_DEVICES;
    const devices = existsSync('/dev/nvidia0') ? expect.any(Array) : ['0', '1', '7'];
    expect([0, 1, 7].map(visibleDevice)).toEqual(devices);
  });

  it('end when their launcher is killed', async () => {
    const body = `process.stdout.write(process.pid + '\\n'); await new Promise((resolve) => setTimeout(resolve, 60_000));`;
    let killed = 0;
    const { stdout, signal } = await runProcess([...NODE, script('orphans', body), '2'], {
      during: async (child, ended) => {
        let text = '';
        child.stdout!.on('data', (data) => {
          text += data;
        });
        await until(() => text.split('\n').length === 3, ended);
        child.kill('SIGKILL');
        killed = performance.now();
      },
    });
    expect(signal).toBe('SIGKILL');
    // Their output is closed when both have ended: long before their minute is over.
    expect(stdout).not.toBe('');
    expect(performance.now() - killed).toBeLessThan(10_000);
  });
});
