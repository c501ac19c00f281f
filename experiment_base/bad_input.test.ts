import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { describe, expect, it, vi } from 'vitest';
import { refusal } from '../testing/mains.ts';
import type { Ended } from '../testing/processes.ts';
import { at, MODEL, run, SHORT } from '../testing/script.ts';

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
  ['G = 1', () => ['--num-generations', '1'], /--num-generations.*from 2 to/],
  ['negative rate', () => ['--learning-rate', '-1'], /--learning-rate.*from 0 to 1/],
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
  ['too few to hold out', () => dataset('few.jsonl', GOOD_LINE), /few\.jsonl has 1 item, too few/],
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
  [
    'a model name of control characters',
    () => ['--model-name', 'a\x1b[31mb'],
    /no control characters, found "a\\u001b/,
  ],
  ['a model name that is too long', () => ['--model-name', 'x'.repeat(5000)], /--model-name: the name is too long/],
  ['top-k above the vocabulary', () => ['--top-k', '100000'], /--top-k 100000 is too much: the model knows/],
  [
    'too many completions',
    () => '--batch-size 65536 --num-generations 65536'.split(' '),
    /4294967296 completions a step, of at most 65536/,
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

vi.mock('../lib/cli/main.ts', () => import('../testing/mains.ts'));
const refused = (...args: string[]) => refusal('experiment_base/train.ts', args);

describe('bad input is refused with one sentence', () => {
  it.each(BAD)('%s', async (name, flags, message) => {
    const folder = at('refused', name);
    // --resume takes no folder that it is not told of
    const output = name.startsWith('--resume') ? [] : ['--output-dir', folder];
    expect(await refused(...SHORT, ...output, ...flags())).toMatch(message);
    expect(existsSync(folder)).toBe(false);
  });

  const files = (folder: string) => readdirSync(folder).map((name) => [name, readFileSync(join(folder, name), 'utf8')]);

  it('--output-dir that holds another run, which stays as it was', async () => {
    const folder = at('another');
    mkdirSync(folder);
    writeFileSync(join(folder, 'metrics.jsonl'), '{"step":1}\n');
    const before = files(folder);
    expect(await refused(...SHORT, '--output-dir', folder)).toMatch(/another holds another run.*--resume/);
    expect(files(folder)).toEqual(before);
  });

  it('--output-dir that is a file, which stays as it was', async () => {
    writeFileSync(at('a file'), 'mine');
    expect(await refused(...SHORT, '--output-dir', at('a file'))).toMatch(/a file is a file/);
    expect(readFileSync(at('a file'), 'utf8')).toBe('mine');
  });

  it('--resume of a run of another experiment', async () => {
    const folder = at('other experiment');
    mkdirSync(folder);
    writeFileSync(join(folder, 'config.json'), '{"experiment":"experiment_other","options":{}}');
    const before = files(folder);
    expect(await refused('--resume', folder)).toMatch(/holds a run of experiment_other/);
    expect(files(folder)).toEqual(before);
  });
});

describe.concurrent('the script then ends with that sentence on stderr and exit code 2', () => {
  const expectRefusal = ({ code, stdout, stderr }: Ended, message: RegExp) => {
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toMatch(/^error: [^\n]+\n$/);
    expect(stderr).toMatch(message);
  };

  it.each([BAD[0], BAD.find(([name]) => name === 'truncated weights')!])('%s', async (name, flags, message) => {
    const folder = at('ended', name);
    expectRefusal(await run([...SHORT, '--output-dir', folder, ...flags()]), message);
    expect(existsSync(folder)).toBe(false);
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
