import type { ChildProcess } from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { writeTestData, writeTestModel } from '../tools/test_model.ts';
import {
  BACKEND,
  type During,
  type Ended,
  holds,
  lastStep,
  NODE,
  REPOSITORY,
  results,
  runProcess,
  sleep,
  until,
} from '../tools/test_process.ts';

// The script as a user runs it, in processes of its own, with a random model so small that a step takes milliseconds.

const TRAIN = 'experiment_base/train.ts';
const TSX = [join(REPOSITORY, 'node_modules/.bin/tsx')];

const temp = mkdtempSync(join(tmpdir(), 'grpo-'));
const at = (...names: string[]) => join(temp, ...names);
const MODEL = at('model');
afterAll(() => rmSync(temp, { recursive: true, force: true }));

beforeAll(async () => {
  await writeTestModel(MODEL);
  writeTestData(at('data.jsonl'), 12);
});

const TINY =
  `--model-name ${MODEL} --dataset ${at('data.jsonl')} --backend ${BACKEND} --eval-size 4 --max-new-tokens 16`.split(
    ' ',
  );
const SHORT = [...TINY, ...'--batch-size 2 --num-generations 4 --max-steps 8 --learning-rate 0.01'.split(' ')];

/** Runs the script to its end; `during` may meddle with it meanwhile. */
const run = (args: string[], { command = NODE, during }: { command?: string[]; during?: During } = {}) =>
  runProcess([...command, TRAIN, ...args], { during });

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
  'in step 7 or soon after': async (folder, ended) => {
    await until(() => lastStep(folder) >= 6, ended);
    await sleep(60 * Math.random());
  },
  'at the very end': (folder, ended) => until(() => holds(folder, /^checkpoint-8$/), ended),
};

describe.concurrent('a run', () => {
  const VARIANTS = {
    plain: {
      flags: ['--save-steps', '1', '--eval-steps', '3'],
      moments: Object.keys(MOMENTS).filter((moment) => !moment.startsWith('after')),
    },
    'with μ = 2, mini-batches and KL': {
      flags: '--save-steps 2 --num-iterations 2 --mini-batch-size 4 --kl-coef 0.05 --lr-scheduler linear'.split(' '),
      moments: ['after step 3, which no checkpoint has', 'after step 5, which no checkpoint has'],
    },
    'with an adapter and gradient checkpointing': {
      flags: '--save-steps 2 --lora-rank 4 --kl-coef 0.05 --gradient-checkpointing'.split(' '),
      moments: ['after step 3, which no checkpoint has', 'after step 5, which no checkpoint has'],
    },
  };

  it.each(Object.entries(VARIANTS))(
    'that is killed (-9) and resumed ends as if it never was: %s',
    async (name, variant) => {
      const [whole, killed] = [at(`${name} whole`), at(`${name} killed`)];
      const args = [...SHORT, ...variant.flags];
      const reference = run([...args, '--output-dir', whole]);
      const resume = () => {
        if (!existsSync(join(killed, 'config.json'))) return [...args, '--output-dir', killed];
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
      expect(await reference).toMatchObject({ code: 0, stderr: '' });
      expect(results(killed)).toEqual(results(whole));
      // Only the number of checkpoints may differ, where the kill came between the last one and the removal of an older one.
      const files = (folder: string) => readdirSync(folder).filter((file) => !file.startsWith('checkpoint-'));
      expect(files(killed).sort()).toEqual(files(whole).sort());

      const { metrics } = results(whole);
      expect(metrics.map(({ step }) => step)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
      expect(metrics.some(({ grad_norm }) => Number(grad_norm) > 0)).toBe(true); // else this test shows nothing
      expect(metrics.slice(1).every((row) => 'kl' in row === (name !== 'plain'))).toBe(true);
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

  it('is reproducible: the seed decides everything but the timings', async () => {
    const seeds = [3, 3, 4];
    const folders = seeds.map((seed, i) => at(`seed ${seed} ${i}`));
    await Promise.all(
      folders.map((folder, i) => run([...SHORT, '--max-steps', '3', '--seed', `${seeds[i]}`, '--output-dir', folder])),
    );
    const [first, again, other] = folders.map(results);
    expect(again).toEqual(first);
    expect(other.metrics).not.toEqual(first.metrics);
    expect(other.completions).not.toEqual(first.completions);
  });

  it('takes values from --config, and those of the command line before them', async () => {
    writeFileSync(at('config.yaml'), 'max_steps: 1\nseed: 3\n# a comment\nbatch-size: 1\nlr-scheduler: cosine\n');
    const folder = at('configured');
    const { code } = await run([...TINY, '--config', at('config.yaml'), '--seed', '4', '--output-dir', folder]);
    expect(code).toBe(0);
    const { options } = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'));
    expect(options).toMatchObject({ maxSteps: 1, seed: 4, batchSize: 1, lrScheduler: 'cosine', numGenerations: 8 });
    expect(lastStep(folder)).toBe(1);
  });

  it('explains with --help every option', async () => {
    const { code, stdout, stderr } = await run(['--help']);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    // biome-ignore format: a list
    const names = [
      'model-name', 'dataset', 'output-dir', 'seed', 'max-steps', 'batch-size', 'num-generations', 'num-iterations',
      'mini-batch-size', 'gradient-accumulation-steps', 'learning-rate', 'lr-scheduler', 'warmup-steps', 'weight-decay',
      'max-grad-norm', 'kl-coef', 'clip-range', 'clip-range-high', 'temperature', 'top-k', 'top-p', 'max-new-tokens',
      'eval-steps', 'eval-size', 'logging-steps', 'save-steps', 'save-total-limit', 'resume', 'backend', 'blas', 'config',
    ];
    expect(names.filter((name) => !new RegExp(`^ +--${name} <.*>  +\\S`, 'm').test(stdout))).toEqual([]);
  });
});

// A step takes about a second: first sampling, which lets Node hear of signals, then training, which does not.
const LONG = [
  ...TINY,
  ...'--batch-size 32 --num-generations 8 --num-iterations 4 --max-steps 1000 --eval-steps 0 --save-steps 0'.split(' '),
];

describe.concurrent('Ctrl-C', () => {
  const COMMANDS: [string, string[], NodeJS.Signals | number][] = [
    ['node --import tsx', NODE, 'SIGINT'],
    ['tsx', TSX, 130],
  ];
  /** What a terminal does: every process of the group gets the signal. */
  const interrupt = (child: ChildProcess) => process.kill(-child.pid!, 'SIGINT');

  it.each(COMMANDS)('finishes the step, saves and says how to resume: %s', async (name, command) => {
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
    expect(stdout).toContain(`--resume ${folder}\n`);
    expect(readdirSync(folder)).toContain(`checkpoint-${lastStep(folder)}`);
  });

  it.each(COMMANDS)('pressed twice stops at once: %s', async (name, command, end) => {
    const folder = at(`stopped ${name}`);
    let pressed = 0;
    const during = async (child: ChildProcess, ended: () => boolean) => {
      let noted = false;
      child.stderr!.on('data', (data) => {
        noted ||= String(data).includes('finishing this step');
      });
      await until(() => lastStep(folder) >= 1, ended);
      interrupt(child);
      await until(() => noted, ended);
      interrupt(child);
      pressed = performance.now();
    };
    const { code, signal } = await run([...LONG, '--output-dir', folder], { command, during });
    expect(code ?? signal).toBe(end);
    expect(performance.now() - pressed).toBeLessThan(1000);
    expect(holds(folder, /checkpoint/)).toBe(false);
  });
});

/** A copy of the model with something wrong. */
function broken(name: string, spoil: (folder: string) => void): string[] {
  const folder = at(name);
  cpSync(MODEL, folder, { recursive: true });
  spoil(folder);
  return ['--model-name', folder];
}

/** Rewrites the header of a copy's weights. */
function brokenHeader(
  name: string,
  spoil: (header: Record<string, { dtype: string; shape: number[]; data_offsets: number[] }>) => void,
) {
  return broken(name, (folder) => {
    const file = join(folder, 'model.safetensors');
    const bytes = readFileSync(file);
    const end = 8 + Number(bytes.readBigUInt64LE());
    const header = JSON.parse(bytes.toString('utf8', 8, end));
    spoil(header);
    const text = Buffer.from(JSON.stringify(header));
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(text.length));
    writeFileSync(file, Buffer.concat([length, text, bytes.subarray(end)]));
  });
}

const dataset = (name: string, text: string) => {
  writeFileSync(at(name), text);
  return ['--dataset', at(name)];
};
const config = (name: string, text: string) => {
  writeFileSync(at(name), text);
  return ['--config', at(name)];
};
const GOOD_LINE = '{"question":"1+1","answer":2}\n';

const BAD: [name: string, flags: () => string[], message: RegExp][] = [
  ['unknown option', () => ['--max-step', '3'], /unknown option '--max-step'.*Did you mean --max-steps\?/],
  ['G = 1', () => ['--num-generations', '1'], /--num-generations.*at least 2/],
  ['negative rate', () => ['--learning-rate', '-1'], /--learning-rate.*at least 0/],
  [
    'mini-batch that does not divide',
    () => ['--mini-batch-size', '3'],
    /8 completions.*must divide into updates of 3 /,
  ],
  [
    'accumulation that does not divide',
    () => '--mini-batch-size 4 --gradient-accumulation-steps 3'.split(' '),
    /updates of 12 /,
  ],
  ['missing data set', () => ['--dataset', at('none.jsonl')], /cannot read the data set .*none\.jsonl/],
  ['empty data set', () => dataset('empty.jsonl', '\n'), /empty\.jsonl is empty/],
  [
    'malformed line',
    () => dataset('malformed.jsonl', `${GOOD_LINE}{"question":`),
    /malformed\.jsonl:2: not valid JSON/,
  ],
  [
    'answer null',
    () => dataset('null.jsonl', `${GOOD_LINE}{"question":"1","answer":null}`),
    /null\.jsonl:2: "answer".*found null/,
  ],
  ['no question', () => dataset('blank.jsonl', '{"answer":1}'), /blank\.jsonl:1: "question".*found nothing/],
  ['too few to hold out', () => dataset('few.jsonl', GOOD_LINE), /few\.jsonl has 1 items, too few/],
  [
    'prompt longer than the context',
    () => dataset('long.jsonl', GOOD_LINE.repeat(4) + JSON.stringify({ question: '1+'.repeat(30), answer: 1 })),
    /long\.jsonl:5: the prompt has 62 tokens.*context of 64/,
  ],
  [
    'missing model',
    () => ['--model-name', at('none')],
    /none: a model must be a folder, or an id on the hub such as .*, found no such folder/,
  ],
  [
    'no checkpoint',
    () => broken('bare', (folder) => rmSync(join(folder, 'config.json'))),
    /bare\/config\.json: there is no such file/,
  ],
  [
    'no weights',
    () => broken('weightless', (folder) => rmSync(join(folder, 'model.safetensors'))),
    /weightless: no model\.safetensors/,
  ],
  [
    'no tokenizer',
    () => broken('mute', (folder) => rmSync(join(folder, 'tokenizer.json'))),
    /mute\/tokenizer\.json: there is no such file/,
  ],
  [
    'truncated weights',
    () => broken('truncated', (folder) => truncateSync(join(folder, 'model.safetensors'), 50_000)),
    /truncated/,
  ],
  [
    'header too large',
    () =>
      broken('header', (folder) => {
        const file = join(folder, 'model.safetensors');
        const bytes = readFileSync(file);
        bytes.writeBigUInt64LE(2n ** 40n);
        writeFileSync(file, bytes);
      }),
    /header says it is 1099511627776 bytes long/,
  ],
  [
    'offsets outside the file',
    () =>
      brokenHeader('outside', (header) => {
        const last = Object.values(header).reduce((a, b) =>
          (b.data_offsets?.[1] ?? 0) > (a.data_offsets?.[1] ?? 0) ? b : a,
        );
        last.data_offsets[1] += 4 * last.shape[0];
        if (last.shape.length === 1) last.shape[0] *= 2;
        else last.shape[1] += 1;
      }),
    /ends at byte \d+, but the file has only/,
  ],
  [
    'wrong dtype',
    () => brokenHeader('dtype', (header) => Object.assign(header['model.norm.weight'], { dtype: 'I32' })),
    /"model\.norm\.weight" must be F32, F16, BF16, found I32/,
  ],
  [
    'shape mismatch',
    () => brokenHeader('shape', (header) => void header['model.layers.0.mlp.up_proj.weight'].shape.reverse()),
    /up_proj\.weight" must have the shape \[64,32\].*found \[32,64\]/,
  ],
  [
    'unsupported architecture',
    () =>
      broken('gpt2', (folder) => {
        const text = readFileSync(join(folder, 'config.json'), 'utf8');
        writeFileSync(join(folder, 'config.json'), text.replace('LlamaForCausalLM', 'GPT2LMHeadModel'));
      }),
    /architecture \["GPT2LMHeadModel"\] is not supported/,
  ],
  ['unknown backend', () => ['--backend', 'cuda'], /'cuda' is invalid.*auto, tensorflow, wasm, webgpu, cpu/],
  ['--resume of what is no run', () => ['--resume', MODEL], /model is not the folder of a run/],
  [
    '--config with an unknown key',
    () => config('key.yaml', 'seed: 1\nspeed: 2\n'),
    /key\.yaml:2: unknown option '--speed'/,
  ],
  ['--config that is no YAML', () => config('bad.yaml', 'seed: 1\n  : [\n'), /bad\.yaml:\d+: not valid YAML/],
  ['--config that is missing', () => ['--config', at('none.yaml')], /--config: cannot read .*none\.yaml/],
];

describe.concurrent('bad input ends with one sentence on stderr and exit code 2', () => {
  const expectRefusal = ({ code, stdout, stderr }: Ended, message: RegExp) => {
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
    expect(stderr).toMatch(message);
  };

  it.each(BAD)('%s', async (name, flags, message) => {
    const folder = at('refused', name);
    // --resume takes no folder that it is not told of
    const output = name.startsWith('--resume') ? [] : ['--output-dir', folder];
    expectRefusal(await run([...SHORT, ...output, ...flags()]), message);
    expect(existsSync(folder)).toBe(false);
  });

  const files = (folder: string) => readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')]);

  it('--output-dir that holds another run, which stays as it was', async () => {
    const folder = at('another');
    mkdirSync(folder);
    writeFileSync(join(folder, 'metrics.jsonl'), '{"step":1}\n');
    const before = files(folder);
    expectRefusal(await run([...SHORT, '--output-dir', folder]), /another holds another run.*--resume/);
    expect(files(folder)).toEqual(before);
  });

  it('--output-dir that is a file, which stays as it was', async () => {
    writeFileSync(at('a file'), 'mine');
    expectRefusal(await run([...SHORT, '--output-dir', at('a file')]), /a file is a file/);
    expect(readFileSync(at('a file'), 'utf8')).toBe('mine');
  });

  it('--resume of a run of another experiment', async () => {
    const folder = at('other experiment');
    mkdirSync(folder);
    writeFileSync(join(folder, 'config.json'), '{"experiment":"experiment_other","options":{}}');
    const before = files(folder);
    expectRefusal(await run(['--resume', folder]), /holds a run of experiment_other/);
    expect(files(folder)).toEqual(before);
  });

  const installed = ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node'].filter((name) => {
    try {
      return createRequire(import.meta.url).resolve(name) !== '';
    } catch {
      return false;
    }
  });
  const why = installed.length > 0 ? ` (skipped: ${installed} is installed)` : '';
  it.skipIf(installed.length > 0)(`a backend that cannot be loaded: which, and how to get it${why}`, async () => {
    const folder = at('refused', 'backend');
    const ended = await run([...SHORT, '--backend', 'tensorflow', '--output-dir', folder]);
    expectRefusal(ended, /backend tensorflow cannot be loaded.*npm install @tensorflow\/tfjs-node-gpu/);
    expect(existsSync(folder)).toBe(false);
  });
});
