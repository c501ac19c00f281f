import type { ChildProcess } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { parseRunOptions } from '../lib/cli/command.ts';
import { quoted } from '../lib/text.ts';
import { BACKEND, holds, lastStep, NODE, REPEATS, results, sleep, TSX, until } from '../testing/processes.ts';
import { at, MODEL, run, SHORT, TINY } from '../testing/script.ts';
import { createCommand } from './train.ts';

const MOMENTS: Record<string, (folder: string, ended: () => boolean) => Promise<unknown>> = {
  'during start': () => sleep(150 + 600 * Math.random()),
  'before the first step': (folder, ended) => until(() => existsSync(join(folder, 'config.json')), ended),
  'in step 3 or soon after': async (folder, ended) => {
    await until(() => lastStep(folder) >= 2, ended);
    await sleep(60 * Math.random());
  },
  'after step 3, which no checkpoint has': (folder, ended) => until(() => lastStep(folder) >= 3, ended),
  'after step 5, which no checkpoint has': (folder, ended) => until(() => lastStep(folder) >= 5, ended),
  'while saving': (folder, ended) =>
    until(() => lastStep(folder) >= 4 && holds(folder, /^\.checkpoint-.*partial$/), ended),
  'at the very end': (folder, ended) => until(() => holds(folder, /^checkpoint-8$/), ended),
};

describe.concurrent('a run', () => {
  const VARIANTS: Record<string, { flags: string[]; moments: string[] }> = {
    plain: {
      flags: ['--save-steps', '1', '--eval-steps', '3'],
      moments: Object.keys(MOMENTS).filter((moment) => !moment.startsWith('after')),
    },
    'with μ = 2, mini-batches and KL': {
      flags: '--save-steps 2 --num-iterations 2 --mini-batch-size 4 --kl-coef 0.05 --lr-scheduler linear'.split(' '),
      moments: ['after step 5, which no checkpoint has'],
    },
    'with an adapter and gradient checkpointing': {
      flags: '--save-steps 2 --lora-rank 4 --kl-coef 0.05 --gradient-checkpointing'.split(' '),
      moments: ['after step 3, which no checkpoint has'],
    },
  };

  const wholes = new Map<string, Promise<string>>();
  /** The folder of a variant's run that nobody has disturbed. */
  const wholeOf = (name: string) => {
    if (!wholes.has(name)) wholes.set(name, runWhole(name));
    return wholes.get(name)!;
  };
  const runWhole = async (name: string) => {
    const folder = at(`${name} whole`);
    const args = [...SHORT, ...VARIANTS[name].flags, '--output-dir', folder];
    expect(await run(args)).toMatchObject({ code: 0, stderr: '' });
    return folder;
  };

  it.each(Object.entries(VARIANTS))(
    'that is killed (-9) and resumed ends as if it never was: %s',
    async (name, variant) => {
      const reference = wholeOf(name);
      for (let repeat = 0; repeat < REPEATS; repeat++) {
        const killed = at(`${name} killed ${repeat}`);
        const resume = () => {
          if (!existsSync(join(killed, 'config.json'))) return [...SHORT, ...variant.flags, '--output-dir', killed];
          return name === 'plain' ? ['--resume', 'latest', '--output-dir', killed] : ['--resume', killed];
        };
        for (const moment of variant.moments) {
          const during = async (child: ChildProcess, ended: () => boolean) => {
            await MOMENTS[moment](killed, ended);
            child.kill('SIGKILL');
          };
          expect(await run(resume(), { during }), moment).toMatchObject({ signal: 'SIGKILL', stderr: '' });
        }
        expect(await run(resume())).toMatchObject({ code: 0, stderr: '' });
        const whole = await reference;
        expect(results(killed)).toEqual(results(whole));
        // Only the number of checkpoints may differ, where the kill came between the last one and the removal of an older one.
        const files = (folder: string) => readdirSync(folder).filter((file) => !file.startsWith('checkpoint-'));
        expect(files(killed).sort()).toEqual(files(whole).sort());
      }
      const { metrics } = results(await reference);
      expect(metrics.map(({ step }) => step)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
      expect(metrics.some(({ grad_norm }) => Number(grad_norm) > 0)).toBe(true); // else this test shows nothing
      expect(metrics.slice(1).every((row) => 'kl' in row === (name !== 'plain'))).toBe(true);
    },
  );

  // The bundled model: in one as small as the others here there is nothing to share.
  it.skipIf(BACKEND !== 'wasm').each(['auto', 'off'])(
    'is the same on 1, 2 and 8 threads, and if that changes at a resume: --blas %s',
    async (blas) => {
      const size = '--batch-size 4 --num-generations 4 --eval-size 8 --lr-scheduler constant --max-steps'.split(' ');
      const folder = (name: string) => at(`threads ${name} ${blas}`);
      const trained = async (name: string, steps: string, ...args: string[]) => {
        const wasm = ['--backend', 'wasm', '--blas', blas, '--output-dir', folder(name)];
        expect(await run([...size, steps, ...wasm, ...args])).toMatchObject({ code: 0, stderr: '' });
      };
      await Promise.all([
        trained('1', '2', '--threads', '1'),
        trained('8', '2', '--threads', '8'),
        trained('2', '1', '--threads', '2'),
      ]);
      const resumed = await run(['--resume', folder('2'), '--threads', '3', '--max-steps', '2']);
      expect(resumed).toMatchObject({ code: 0, stderr: '' });
      expect(resumed.stdout).toContain('--threads 3 (was 2)');
      expect(results(folder('8'))).toEqual(results(folder('1')));
      expect(results(folder('2')).weights).toEqual(results(folder('1')).weights);
    },
  );

  it('merges an adapter at its end, and goes on from an adapter', async () => {
    const [merged, further] = [at('merged'), at('further')];
    const args = [...SHORT, '--max-steps', '2'];
    const adapted = [...args, '--lora-rank', '2', '--merge-adapter', '--output-dir', merged];
    expect(await run(adapted)).toMatchObject({ code: 0, stderr: '' });
    const model = JSON.parse(readFileSync(join(merged, 'final_model/config.json'), 'utf8'));
    expect(model).toEqual(JSON.parse(readFileSync(join(MODEL, 'config.json'), 'utf8')));
    const adapter = join(merged, 'checkpoint-2');
    const { stdout, ...ended } = await run([...args, '--model-name', adapter, '--output-dir', further]);
    expect(ended).toMatchObject({ code: 0, stderr: '' });
    const settings = (folder: string) => JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    expect(settings(join(further, 'final_model'))).toEqual(settings(adapter));
    // What one run ends with, merged or as an adapter, is what the next one starts with.
    const [before, after] = [results(merged).metrics.at(-1)!, results(further).metrics[0]];
    expect(after['eval/pass_at_8']).toBe(before['eval/pass_at_8']);
    expect(stdout).toContain('model: ');

    const resumed = await run(['--resume', merged, '--max-steps', '3', '--lora-alpha', '400']);
    expect(resumed).toMatchObject({
      code: 2,
      stderr: expect.stringMatching(/^error: --lora-alpha is 400, but .* for 4:/),
    });
  });

  it('of another seed is another one; of the same, the same: see above', async () => {
    const folder = at('seed');
    await run([...SHORT, ...VARIANTS.plain.flags, '--seed', '4', '--output-dir', folder]);
    const [first, other] = [await wholeOf('plain'), folder].map(results);
    expect(other.metrics).not.toEqual(first.metrics);
    expect(other.completions).not.toEqual(first.completions);
  });
});

describe('the command line', () => {
  it('takes values from --config, and those of the command line before them', () => {
    writeFileSync(at('config.yaml'), 'max_steps: 1\nseed: 3\n# a comment\nbatch-size: 1\nlr-scheduler: cosine\n');
    const line = ['node', 'train.ts', ...TINY, '--config', at('config.yaml'), '--seed', '4'];
    expect(parseRunOptions(createCommand(), line)).toMatchObject({
      ...{ maxSteps: 1, seed: 4, batchSize: 1, lrScheduler: 'cosine', numGenerations: 8 },
    });
  });

  it('explains with --help every option', () => {
    const said: string[] = [];
    createCommand()
      .configureOutput({ writeOut: (text) => said.push(text) })
      .outputHelp();
    const help = said.join('');
    const names = [
      'model-name dataset output-dir seed max-steps batch-size num-generations num-iterations',
      'mini-batch-size gradient-accumulation-steps learning-rate lr-scheduler warmup-steps weight-decay',
      'max-grad-norm kl-coef clip-range clip-range-high temperature top-k top-p max-new-tokens eval-steps',
      'eval-size logging-steps save-steps save-total-limit resume backend blas config',
    ].flatMap((line) => line.split(' '));
    expect(names.filter((name) => !new RegExp(`^ +--${name} <.*>  +\\S`, 'm').test(help))).toEqual([]);
    const headings = help.match(/^[A-Z].*:$/gm);
    expect(headings).toEqual(
      ['GRPO', 'Model', 'Data and steps', 'Prompt', 'Sampling', 'Optimizer', 'Run', 'Backend', 'Examples'].map(
        (name) => `${name}:`,
      ),
    );
  });
});

// A step takes about a second: first sampling, which lets Node hear of signals, then training, which does not.
const LONG = [
  ...TINY,
  ...'--batch-size 32 --num-generations 8 --num-iterations 4 --max-steps 1000 --eval-size 0 --save-steps 0'.split(' '),
];

describe.concurrent('a run that goes on', () => {
  it('refuses to be resumed meanwhile, and ends when its folder is deleted', async () => {
    const folder = at('under way');
    const during = async (child: ChildProcess, ended: () => boolean) => {
      await until(() => lastStep(folder) >= 1, ended);
      const second = await run(['--resume', folder]);
      expect(second).toMatchObject({ code: 2, stdout: '' });
      expect(second.stderr).toBe(
        `error: ${folder} is being written by process ${child.pid} (since ${second.stderr.match(/since ([^)]*)/)?.[1]}): wait until it ends, or end it; if it is not a run, remove ${join(folder, readdirSync(folder).find((name) => name.startsWith('.lock-'))!)}\n`,
      );
      renameSync(folder, at('moved')); // all at once, where a deletion might come between two files
      rmSync(at('moved'), { recursive: true });
    };
    const { code, stderr } = await run([...LONG, '--output-dir', folder], { during });
    expect({ code, stderr }).toEqual({
      code: 2,
      stderr: expect.stringMatching(/^error: \S.* was deleted, moved or replaced while it was written, so [^\n]*\n$/),
    });
    expect(existsSync(folder)).toBe(false);
  });

  it('has its folder for itself: of two that start at once with the same one, one is refused', async () => {
    const outputDir = ['--output-dir', at('wanted')];
    const ended = await Promise.all([1, 2].map(() => run([...SHORT, '--max-steps', '1', ...outputDir])));
    expect(ended.map(({ code }) => code).sort()).toEqual([0, 2]);
    const [{ stderr }] = ended.filter(({ code }) => code === 2);
    expect(stderr).toMatch(/^error: [^\n]*(is being written by process|holds another run)[^\n]*\n$/);
    expect(lastStep(at('wanted'))).toBe(1);
    expect(holds(at('wanted'), /^\./)).toBe(false);
  });
});

describe.concurrent('Ctrl-C', () => {
  /** Waits until a process has said something. */
  const said = (output: Readable, text: string, ended: () => boolean) => {
    let found = '';
    output.on('data', (data) => {
      found += data;
    });
    return until(() => found.includes(text), ended);
  };
  /** What a terminal does: every process of the group gets the signal. */
  const interrupt = (child: ChildProcess) => process.kill(-child.pid!, 'SIGINT');

  it.each([
    ['node --import tsx', NODE],
    ['tsx', TSX],
  ])('finishes the step, saves and says how to resume: %s', async (name, command) => {
    const folder = at(`interrupted ${name}`);
    const during = async (child: ChildProcess, ended: () => boolean) => {
      await until(() => lastStep(folder) >= 1, ended);
      await sleep(500); // in training: the tsx command would kill a child that does not answer within 60 ms
      interrupt(child);
    };
    const { code, stdout, stderr } = await run([...LONG, '--output-dir', folder], { command, during });
    expect({ code, stderr: stderr.trim() }).toEqual({
      code: 130,
      stderr: expect.stringMatching(/^finishing this step.*$/),
    });
    expect(stdout).toContain(`--resume ${quoted(folder)}
`);
    expect(readdirSync(folder)).toContain(`checkpoint-${lastStep(folder)}`);
  });

  it('before the first step says that nothing is saved', async () => {
    const folder = at('not begun');
    const during = async (child: ChildProcess, ended: () => boolean) => {
      await said(child.stdout!, 'held out', ended);
      await sleep(100);
      interrupt(child);
    };
    // The bundled model and its data: an evaluation of some seconds.
    const { signal, stderr } = await run(['--backend', BACKEND, '--output-dir', folder], { during });
    expect(signal).toBe('SIGINT');
    expect(stderr.trim()).toMatch(/^stopped before the first step, nothing is saved yet; to start again: .*--resume/);
    expect(readdirSync(folder)).toEqual(['config.json', 'config.yaml']);
  });

  it('pressed twice stops at once', async () => {
    const folder = at('stopped');
    let pressed = 0;
    const during = async (child: ChildProcess, ended: () => boolean) => {
      await said(child.stdout!, 'held out', ended);
      await sleep(50); // until it listens
      interrupt(child); // while it samples: signals are heard between two positions, not between two updates
      await said(child.stderr!, 'finishing this step', ended);
      await sleep(500); // less counts as the same press
      interrupt(child);
      pressed = performance.now();
    };
    const { signal } = await run([...LONG, '--batch-size', '128', '--num-iterations', '200', '--output-dir', folder], {
      during,
    });
    expect(signal).toBe('SIGINT');
    expect(performance.now() - pressed).toBeLessThan(10_000); // the step takes minutes
    expect(holds(folder, /checkpoint/)).toBe(false);
  });
});
