import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';

const SCRIPT = `
  const { onInterrupt } = await import(process.argv[1]);
  const interrupt = onInterrupt();
  console.log('ready');
  const block = (ms) => { for (const start = Date.now(); Date.now() - start < ms; ); };
  while (!interrupt.requested()) { block(50); await new Promise((resolve) => setTimeout(resolve, 1)); }
  console.log('requested');
  block(Number(process.argv[2]));
  console.log('saved');
  interrupt.dispose();
`;

/** Runs the script, sends the first signal when it is ready and the second when it has noticed the first. */
async function run(
  first: NodeJS.Signals,
  second: NodeJS.Signals | undefined,
  saveMs: number,
  onNoted: (child: ChildProcess) => void = () => {},
) {
  const file = join(import.meta.dirname, 'interrupt.ts');
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', SCRIPT, file, String(saveMs)]);
  let output = '';
  let stderr = '';
  child.stderr.on('data', (data) => {
    stderr += data;
    if (String(data).includes('press Ctrl-C again')) onNoted(child);
  });
  child.stdout.on('data', (data) => {
    output += data;
    if (String(data).includes('ready')) child.kill(first);
    if (String(data).includes('requested') && second) child.kill(second);
  });
  const [code, signal] = await once(child, 'close');
  return { code, signal, output, stderr };
}

describe('onInterrupt', () => {
  it.each(['SIGINT', 'SIGTERM'] as const)('lets the script finish after one %s, and says so once', async (signal) => {
    const result = await run(signal, undefined, 10);
    expect(result).toMatchObject({ code: 0, output: 'ready\nrequested\nsaved\n' });
    expect(result.stderr.match(/press Ctrl-C again/g)).toHaveLength(1);
  });

  // Again where this machine was too busy to send it in time.
  it('takes what npm passes on for the Ctrl-C that the terminal has sent already', { retry: 2 }, async () => {
    const result = await run('SIGINT', undefined, 500, (child) => setTimeout(() => child.kill('SIGINT'), 30));
    expect(result).toMatchObject({ code: 0, output: 'ready\nrequested\nsaved\n' });
  });

  it('stops at once after the second, even while a step blocks the event loop', async () => {
    expect(await run('SIGINT', 'SIGINT', 20_000)).toMatchObject({ signal: 'SIGINT', output: 'ready\nrequested\n' });
  });
});
