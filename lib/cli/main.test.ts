import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { type Ended, NODE, REPOSITORY, runProcess } from '../../testing/processes.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** Runs a script whose `main()` is `body`, with the wasm backend loaded. `redirect` is for a shell. */
function run(name: string, body: string, redirect = ''): Promise<Ended> {
  const file = join(temp, `${name.replaceAll(/\W/g, '_')}.mts`);
  const from = (path: string) => JSON.stringify(join(REPOSITORY, path));
  writeFileSync(
    file,
    `import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { initBackend } from ${from('lib/backend/index.ts')};
import { UserError } from ${from('lib/errors.ts')};
import { runMain } from ${from('lib/cli/main.ts')};
await runMain(import.meta.url, async () => { await initBackend('wasm'); ${body} });`,
  );
  const command = [...NODE, file].map((word) => `'${word}'`).join(' ');
  return runProcess(['sh', '-c', `exec ${command} ${redirect}`]);
}

describe.concurrent('an error that nobody expected ends the process with its stack alone, and exit code 1', () => {
  it.each([
    ['thrown by main', 'undefined.length;'],
    ['thrown in a timer', 'setTimeout(() => undefined.length); await sleep(60_000);'],
    ['a rejection', `(async () => undefined.length)(); await sleep(60_000);`],
  ])('%s', async (name, body) => {
    const { code, stdout, stderr } = await run(name, body);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toMatch(/^TypeError: Cannot read properties of undefined \(reading 'length'\)\n( +at .*\n)+$/);
  });

  it('unless it is a mistake of the user: one sentence, and exit code 2', async () => {
    const ended = await run('mistake', `setTimeout(() => { throw new UserError('no'); }); await sleep(60_000);`);
    expect(ended).toEqual({ code: 2, signal: null, stdout: '', stderr: 'error: no\n' });
  });
});

describe.runIf(process.platform === 'linux').concurrent('output that cannot be written ends no run:', () => {
  const body = (done: string) => `
    for (let i = 0; i < 100; i++) {
      console.log(i);
      process.stdout.write('step\\n');
      console.error(i);
      await new Promise(setImmediate);
    }
    writeFileSync(${JSON.stringify(done)}, 'done');`;

  it.each([
    ['a full disk', '> /dev/full', 100],
    ['a full disk for both', '> /dev/full 2>&1', 0],
    ['a reader that has gone', '| true', 100],
  ])('%s', async (name, redirect, lines) => {
    const done = join(temp, `${name}.txt`);
    const { code, stderr } = await run(name, body(done), redirect);
    expect(code).toBe(0);
    expect(readFileSync(done, 'utf8')).toBe('done');
    expect(stderr.match(/\n/g) ?? []).toHaveLength(lines); // its own, and no more
  });
});

describe.concurrent('what a script says', () => {
  const node = NODE.map((word) => `'${word}'`).join(' ');
  const at = (folder: string, line: string) => runProcess(['sh', '-c', `cd ${folder} && exec ${node} ${line}`]);

  it('where it was started elsewhere than in the root, beside the file that it misses', async () => {
    const { code, stderr } = await at('experiment_base', 'train.ts');
    const folder = join(REPOSITORY, 'experiment_base');
    expect(code).toBe(2);
    expect(stderr).toBe(
      `error: cannot read the data set tasks/sums/train.jsonl (ENOENT): name a JSONL file
note: this was started in ${folder}; tasks/ and models/ are found from ${REPOSITORY} only
`,
    );
  });

  it.each([
    ['tasks/sums/generate.ts', /^Usage: tasks\/sums\/generate.ts/],
    ['bench/profile.ts', /^Usage: bench:profile .*\n\nWhere the time of one step goes/],
  ])('at --help: %s', async (script, usage) => {
    const written = () => statSync(join(REPOSITORY, 'tasks/sums/train.jsonl')).mtimeMs;
    const before = written();
    const { code, stdout, stderr } = await at('.', `${script} --help`);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(usage);
    expect(written()).toBe(before);
  });
});
