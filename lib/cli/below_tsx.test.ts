import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type During, REPOSITORY, runProcess, TSX, until } from '../../testing/processes.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** A script whose ranks run `body`; how many is its argument. */
function script(name: string, body: string): string {
  const file = join(temp, name);
  const from = (path: string) => JSON.stringify(join(REPOSITORY, path));
  writeFileSync(
    file,
    `import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { runRanks } from ${from('lib/cli/ranks.ts')};
import { agree } from ${from('lib/distributed/communicator.ts')};
import { onInterrupt, sayOnInterrupt } from ${from('lib/run/interrupt.ts')};
await runRanks(import.meta.url, async (ranks) => {${body}}, () => Number(process.argv[2]));`,
  );
  return file;
}

/** The process that tsx has started. */
function childOf(tsx: number): number {
  const processes = String(spawnSync('ps', ['-A', '-o', 'pid=,ppid=']).stdout)
    .trim()
    .split('\n');
  return processes.map((line) => line.trim().split(/ +/).map(Number)).find(([, parent]) => parent === tsx)![0];
}

/** Runs a script below tsx; `meddle` is called once it has begun to work. */
function run(file: string, ranks: number, meddle: (tsx: number) => void) {
  const during: During = async (child, ended) => {
    let text = '';
    child.stdout!.on('data', (data) => {
      text += data;
    });
    await until(() => text.includes('working'), ended);
    meddle(child.pid!);
  };
  return runProcess([...TSX, file, String(ranks)], { during });
}

const MOMENTS: [string, (tsx: number) => void, number | NodeJS.Signals][] = [
  // A machine so busy that tsx waits in vain for an answer, and kills its child.
  [
    'Ctrl-C, which its child is too slow to answer',
    (tsx) => {
      process.kill(childOf(tsx), 'SIGSTOP');
      process.kill(-tsx, 'SIGINT');
    },
    130,
  ],
  ['the end of its child', (tsx) => process.kill(childOf(tsx), 'SIGKILL'), 128 + 9],
  ['its own end', (tsx) => process.kill(tsx, 'SIGKILL'), 'SIGKILL'],
];

describe.concurrent('below tsx', () => {
  const training = script(
    'training.mts',
    `
    const interrupt = ranks.rank === 0 ? onInterrupt() : undefined;
    await ranks.barrier(); // all have started
    if (interrupt) console.log('working');
    do {
      for (const began = Date.now(); Date.now() - began < 300; ); // a step, which lets no event through
      await setImmediate();
    } while (!(await agree(ranks, interrupt?.requested() ?? false)));
    if (interrupt) console.log('saved');
    await ranks.barrier();`,
  );

  for (const ranks of [1, 2]) {
    it.each(MOMENTS)(`${ranks} rank(s) finish the step and save after %s`, async (_, meddle, end) => {
      const { code, signal, stdout, stderr } = await run(training, ranks, meddle);
      expect({ end: code ?? signal, stdout, stderr: stderr.trim() }).toEqual({
        ...{ end, stdout: 'working\nsaved\n' },
        stderr: expect.stringMatching(/^finishing this step.*$/),
      });
    });
  }

  it('a script that has nothing to save ends with tsx', async () => {
    const waiting = script('waiting.mts', `console.log('working'); await sleep(600_000); console.log('in vain');`);
    expect(await run(waiting, 1, MOMENTS[2][1])).toMatchObject({ stdout: 'working\n', stderr: '' });
  });

  it('Ctrl-C before anything can be saved ends all with a word', async () => {
    const begun = script(
      'begun.mts',
      `sayOnInterrupt('nothing is saved yet'); console.log('working'); await sleep(600_000);`,
    );
    const { code, stderr } = await run(begun, 1, (tsx) => process.kill(-tsx, 'SIGINT'));
    expect({ code, stderr }).toEqual({ code: 130, stderr: '\nnothing is saved yet\n' });
  });

  it('Ctrl-C pressed twice ends all at once, in the middle of a step', async () => {
    const endless = script(
      'endless.mts',
      `
      const interrupt = onInterrupt();
      console.log('working');
      while (!interrupt.requested()) await setImmediate();
      for (;;);`,
    );
    const { code, stderr } = await run(endless, 1, (tsx) => {
      process.kill(-tsx, 'SIGINT');
      setTimeout(() => process.kill(-tsx, 'SIGINT'), 600);
    });
    expect({ code, stderr: stderr.trim() }).toEqual({ code: 130, stderr: expect.stringMatching(/^finishing.*$/) });
  });
});
