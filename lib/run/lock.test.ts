import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { NODE } from '../../testing/processes.ts';
import { UserError } from '../errors.ts';
import { isLock, lockFolder, releaseLocks, writerOf } from './lock.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'lock-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function message(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    return (error as UserError).message;
  }
  return 'nothing was thrown';
}

/** Another process, which runs `body` with `lockFolder` and the folder at hand. */
function other(body: string) {
  const [program, ...args] = NODE;
  const script = `const { lockFolder } = await import(process.argv[1]); const folder = process.argv[2]; ${body}`;
  const file = join(import.meta.dirname, 'lock.ts');
  return spawn(program, [...args, '--input-type=module', '-e', script, file, folder]);
}

/** The lock of another process, which lives on, or is killed. */
async function lockElsewhere(): Promise<{ name: string; kill: () => Promise<unknown> }> {
  const child = other(`lockFolder(folder); console.log('ready'); setInterval(() => {}, 1000);`);
  await once(child.stdout, 'data');
  const kill = () => {
    child.kill('SIGKILL');
    return once(child, 'exit');
  };
  return { name: readdirSync(folder)[0], kill };
}

describe('a folder', () => {
  it('is reserved until it is given back, however often it is asked for', () => {
    lockFolder(folder)();
    lockFolder(join(folder, '..', folder.split('/').at(-1)!))();
    expect(readdirSync(folder)).toEqual([expect.stringContaining(`.lock-${process.pid}-`)]);
    expect(isLock(readdirSync(folder)[0])).toBe(true);
    releaseLocks();
    expect(readdirSync(folder)).toEqual([]);
    expect(message(lockFolder(folder))).toBe('nothing was thrown');
  });

  it('is given back at the end of a process', async () => {
    for (const end of ['', 'process.exit(3)', 'undefined.length']) {
      const child = other(`lockFolder(folder); console.log('ready'); ${end}`);
      let said = '';
      child.stdout.on('data', (data) => {
        said += data;
      });
      await once(child, 'close');
      expect({ said, left: readdirSync(folder) }).toEqual({ said: 'ready\n', left: [] });
    }
  });

  it('that another process has is refused while that lives, and taken over once it is gone', async () => {
    const { name, kill } = await lockElsewhere();
    const pid = name.split('-')[1];
    expect(message(() => lockFolder(folder))).toMatch(
      new RegExp(`^${folder} is being written by process ${pid} \\(since [^)]+\\): wait until it ends, or end it;`),
    );
    expect(readdirSync(folder)).toEqual([name]);
    await kill();
    expect(readdirSync(folder)).toEqual([name]);
    lockFolder(folder);
    expect(readdirSync(folder)).toEqual([expect.stringContaining(`.lock-${process.pid}-`)]);
  });

  it.runIf(process.platform === 'linux')('is taken over where the number went to another process', async () => {
    const { name, kill } = await lockElsewhere();
    await kill();
    rmSync(join(folder, name));
    writeFileSync(join(folder, name.replace(/^\.lock-\d+/, `.lock-${process.ppid}`)), '');
    lockFolder(folder);
    expect(readdirSync(folder)).toEqual([expect.stringContaining(`.lock-${process.pid}-`)]);
  });

  it.each([
    ['machine', /@.*$/, '@elsewhere'],
    ['container', /-\d+@/, '-77@'],
  ])('that a process of another %s has stays refused, since nothing is known of that', async (_, part, another) => {
    const { name, kill } = await lockElsewhere();
    await kill();
    rmSync(join(folder, name));
    const foreign = name.replace(part, another).replace(/^\.lock-\d+/, '.lock-1');
    writeFileSync(join(folder, foreign), '');
    expect(message(() => lockFolder(folder))).toMatch(
      /is being written by process 1 of another machine or container .*: if that has ended, remove .*\/\.lock-1-\S+$/,
    );
    expect(readdirSync(folder)).toEqual([foreign]);
  });

  it('that was deleted, moved or replaced is noticed, and nothing is made anew', () => {
    const check = lockFolder(folder);
    rmSync(folder, { recursive: true });
    expect(message(check)).toMatch(/was deleted, moved or replaced while it was written, so this run ends/);
    mkdirSync(folder);
    expect(message(check)).toMatch(/was deleted, moved or replaced/);
    releaseLocks();
    expect(readdirSync(folder)).toEqual([]);
  });
});

it('of processes that ask at the same time, for what a killed one has left, exactly one gets it', async () => {
  const [count, rounds] = [4, 25];
  const { name: stale, kill } = await lockElsewhere();
  await kill();
  const names = Array.from({ length: rounds }, (_, round) => String(round));
  for (const name of names) {
    mkdirSync(join(folder, name));
    writeFileSync(join(folder, name, stale), '');
  }
  // In each round all wait until all are there, and keep what they get.
  const body = `
    const { readdirSync, writeFileSync } = await import('node:fs');
    for (let round = 0; round < ${rounds}; round++) {
      writeFileSync(folder + '/ready-' + round + '-' + process.pid, '');
      const ready = () => readdirSync(folder).filter((name) => name.startsWith('ready-' + round + '-')).length;
      while (ready() < ${count});
      try {
        lockFolder(folder + '/' + round);
        console.log(round);
      } catch (error) {
        if (error.name !== 'UserError') throw error;
      }
    }
    writeFileSync(folder + '/ready-end-' + process.pid, '');
    while (readdirSync(folder).filter((name) => name.startsWith('ready-end-')).length < ${count});`;
  const children = Array.from({ length: count }, () => other(body));
  const said = await Promise.all(
    children.map(async (child) => {
      let text = '';
      child.stdout.on('data', (data) => {
        text += data;
      });
      expect(await once(child, 'close')).toEqual([0, null]);
      return text.split('\n').slice(0, -1);
    }),
  );
  expect(said.flat().sort()).toEqual(names.sort());
});

describe('writerOf', () => {
  it('says who has a folder, and changes nothing', async () => {
    expect(writerOf(folder)).toBe('none');
    const { name, kill } = await lockElsewhere();
    expect(writerOf(folder)).toBe('running');
    await kill();
    expect(writerOf(folder)).toBe('killed');
    expect(readdirSync(folder)).toEqual([name]);
    rmSync(join(folder, name));
    lockFolder(folder);
    expect(writerOf(folder)).toBe('running');
    releaseLocks();
    expect(writerOf(folder)).toBe('none');
  });

  it('takes what another machine has for running', () => {
    writeFileSync(join(folder, '.lock-1-unknown-0@elsewhere'), 'held\n');
    expect(writerOf(folder)).toBe('running');
  });
});
