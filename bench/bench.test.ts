import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { noBrowser } from '../testing/browser.ts';
import { BACKEND, NODE, runProcess } from '../testing/processes.ts';

// That they run and print what they should: how fast they are is nobody's test.

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
afterAll(() => rmSync(temp, { recursive: true }));

const SMALL = '--prompts 2 --group 2 --prompt-len 4 --new-tokens 3 --minibatch 2 --repeats 1'.split(' ');
const run = (script: string, ...args: string[]) =>
  runProcess([...NODE, `bench/${script}.ts`, ...args, '--backend', BACKEND]);

describe.concurrent('bench', () => {
  test('times the parts of a step', async () => {
    const { code, stdout, stderr } = await run('bench', 'models/tiny', ...SMALL, '--json');
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const { rollout_s, log_probs_s, train_s, step_s, gemm_peak_share } = JSON.parse(stdout);
    expect(rollout_s + log_probs_s + train_s).toBeCloseTo(step_s, 5);
    expect(gemm_peak_share).toBeGreaterThan(0);
    expect(gemm_peak_share).toBeLessThan(1);
  });

  test('a group of one, without a reference, and an adapter', async () => {
    const flags = [...SMALL, '--group', '1', '--kl-coef', '0', '--lora-rank', '2', '--json'];
    const { code, stdout, stderr } = await run('bench', ...flags);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(JSON.parse(stdout).log_probs_s).toBeLessThan(0.01);
  });

  test('a peer that cannot run ends it with one sentence', async () => {
    const { code, stderr } = await run('bench', ...SMALL, '--peer', '/nowhere/peer.py');
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: --peer \/nowhere\/peer.py did not run .*\n$/);
  });

  test('profile lists kernels, the costliest first', async () => {
    const { code, stdout } = await run('profile', ...SMALL);
    expect(code).toBe(0);
    const [, rollout] = stdout.split(/^rollout_s/m);
    const times = [...rollout.split('\n\n')[0].matchAll(/([\d.]+) ms +\d+ calls/g)].map(([, ms]) => Number(ms));
    expect(times.length).toBeGreaterThan(3);
    expect(times).toEqual(times.toSorted((a, b) => b - a));
  });

  test('doing less: every saving with its ratio', async () => {
    const { code, stdout } = await run('doing_less', ...SMALL);
    expect(code).toBe(0);
    expect(stdout.trim().split('\n')).toHaveLength(9);
  });

  test('random models are what a checkpoint is', async () => {
    const folder = join(temp, 'width');
    const made = await runProcess([...NODE, 'bench/random_model.ts', 'width-64', folder]);
    expect(made).toMatchObject({ code: 0, stderr: '' });
    expect(JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')).hidden_size).toBe(64);
    const { code } = await run('bench', folder, ...SMALL, '--json');
    expect(code).toBe(0);
  });

  test.skipIf(noBrowser)(`the page of a long run beside that of a short one${noBrowser}`, async () => {
    const { code, stdout, stderr } = await runProcess([...NODE, 'bench/watch.ts', '--repeats', '1']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(/^60 steps: \d+ ms .*\n10000 steps: \d+ ms .*\nratio: [\d.]+\n$/);
  });
});
