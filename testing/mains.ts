/**
 * Stands in for lib/cli/main.ts, for tests of what scripts refuse: their main() runs in the process of the test, where one
 * of its own would take seconds. What `runMain` itself makes of an error, sentence and exit code, is tested beside it.
 *
 *   vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));
 */
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { expect, vi } from 'vitest';
import { mistakeIn } from '../lib/errors.ts';
import { REPOSITORY } from './processes.ts';

type Main = () => void | Promise<void>;
const mains = new Map<string, Main>();

export function runMain(url: string, main: Main): void {
  mains.set(url, main);
}

/** Expects that a script says nothing with this command line but that it was mistaken. @returns the sentence */
export async function refusal(script: string, args: string[]): Promise<string> {
  const { href } = pathToFileURL(join(REPOSITORY, script));
  await import(href);
  const { argv } = process;
  const said = [
    vi.spyOn(process.stdout, 'write').mockReturnValue(true),
    vi.spyOn(process.stderr, 'write').mockReturnValue(true),
    vi.spyOn(console, 'log').mockReturnValue(),
  ];
  process.argv = [process.execPath, script, ...args];
  try {
    await mains.get(href)!();
  } catch (error) {
    const sentence = mistakeIn(error);
    if (sentence === undefined) throw error;
    expect(said.flatMap<unknown>(({ mock }) => mock.calls)).toEqual([]);
    return sentence;
  } finally {
    process.argv = argv;
    for (const spy of said) spy.mockRestore();
  }
  throw new Error(`${script} refused nothing`);
}
