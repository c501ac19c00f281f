/**
 * Stands in for lib/cli/main.ts, for tests in whose process scripts run, where one of their own would take seconds. What
 * `runMain` itself makes of an error, sentence and exit code, is tested beside it.
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

/** Runs a script with this command line. @param said - takes what it prints, call by call */
export async function runScript(script: string, args: string[], said: unknown[] = []): Promise<void> {
  const { href } = pathToFileURL(join(REPOSITORY, script));
  await import(href);
  const { argv } = process;
  const spies = [
    vi.spyOn(process.stdout, 'write').mockReturnValue(true),
    vi.spyOn(process.stderr, 'write').mockReturnValue(true),
    vi.spyOn(console, 'log').mockReturnValue(),
    vi.spyOn(console, 'error').mockReturnValue(),
  ];
  process.argv = [process.execPath, script, ...args];
  try {
    await mains.get(href)!();
  } finally {
    process.argv = argv;
    said.push(...spies.flatMap<unknown>(({ mock }) => mock.calls));
    for (const spy of spies) spy.mockRestore();
  }
}

/** Expects that a script says nothing with this command line but that it was mistaken. @returns the sentence */
export async function refusal(script: string, args: string[]): Promise<string> {
  const said: unknown[] = [];
  try {
    await runScript(script, args, said);
  } catch (error) {
    const sentence = mistakeIn(error);
    if (sentence === undefined) throw error;
    expect(said).toEqual([]);
    return sentence;
  }
  throw new Error(`${script} refused nothing`);
}
