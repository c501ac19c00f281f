import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command, Option } from '@commander-js/extra-typings';
import { afterAll, describe, expect, expectTypeOf, it, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { commaSeparated, integer, number, parseOptions } from './options.ts';

const folder = mkdtempSync(join(tmpdir(), 'options-'));
afterAll(() => rmSync(folder, { recursive: true }));

const command = () =>
  new Command('train')
    .version('1.2.3')
    .option('--batch-size <n>', 'prompts a step', integer({ min: 1 }), 16)
    .option('--learning-rate <x>', 'step size', number({ above: 0, below: 1 }), 1e-4)
    .option('--kl-coef <x>', 'weight', number({ min: 0 }), 0)
    .option('--output-dir <dir>', 'run folder')
    .option(
      '--sizes <list>',
      'comma-separated',
      commaSeparated((text) => text.split(',').map(Number)),
    )
    .option('--fused', 'fused kernels')
    .option('--no-shuffle', 'keep the order')
    .addOption(new Option('--backend <name>', 'engine').choices(['auto', 'wasm'] as const).default('auto' as const))
    .option('--config <file>', 'YAML or JSON')
    .option('--resume <run>', 'run, checkpoint or latest');

const parse = (...line: string[]) => parseOptions(command(), ['node', 'train.ts', ...line]);

function config(text: string, name = 'run.yaml'): string {
  const file = join(folder, name);
  writeFileSync(file, text);
  return file;
}

function message(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    return (error as UserError).message;
  }
  throw new Error('nothing was thrown');
}

describe('command line', () => {
  it('gives typed values and defaults', () => {
    const options = parse('--batch-size', '8', '--no-shuffle', '--learning-rate=1e-3');
    expectTypeOf(options.batchSize).toEqualTypeOf<number>();
    expectTypeOf(options.backend).toEqualTypeOf<'auto' | 'wasm'>();
    expectTypeOf(options.outputDir).toEqualTypeOf<string | undefined>();
    expect(options).toEqual({ batchSize: 8, learningRate: 1e-3, klCoef: 0, shuffle: false, backend: 'auto' });
  });

  it.each([
    [['--bach-size', '3'], "unknown option '--bach-size' (Did you mean --batch-size?)"],
    [['--zzz'], "unknown option '--zzz', see --help"],
    [['--batch-size'], "option '--batch-size <n>' argument missing"],
    [
      ['--batch-size', '0'],
      "option '--batch-size <n>' argument '0' is invalid: it must be an integer from 1 to 10000000",
    ],
    [
      ['--batch-size', '2.5'],
      "option '--batch-size <n>' argument '2.5' is invalid: it must be an integer from 1 to 10000000",
    ],
    [
      ['--learning-rate', '-1'],
      "option '--learning-rate <x>' argument '-1' is invalid: it must be a number above 0 and below 1",
    ],
    [['--backend', 'gpu'], "option '--backend <name>' argument 'gpu' is invalid: allowed choices are auto, wasm."],
    [
      ['--batch-size', '9007199254740991'],
      "option '--batch-size <n>' argument '9007199254740991' is invalid: it must be an integer from 1 to 10000000",
    ],
    [
      ['--kl-coef', '1e308'],
      "option '--kl-coef <x>' argument '1e308' is invalid: it must be a number from 0 to 10000000",
    ],
    [
      ['--kl-coef', '1e-320'],
      "option '--kl-coef <x>' argument '1e-320' is invalid: it must be a number from 0 to 10000000; in float32 this is 0",
    ],
    [
      ['--output-dir', '--max-steps=2'],
      '--output-dir has no value: --max-steps=2 follows; if that is to be it, write --output-dir=--max-steps=2',
    ],
    [['--output-dir', ''], '--output-dir: a name must have at least one character, found ""'],
    [['--output-dir', 'a\nb'], '--output-dir: a name must have no control characters, found "a\\nb"'],
    [
      ['--backend', 'a\x1bb'],
      "option '--backend <name>' argument 'a\\u001bb' is invalid: allowed choices are auto, wasm.",
    ],
    [['extra'], "unexpected argument 'extra': this script takes options only, see --help"],
  ])('says what is wrong with %j', (line, expected) => {
    expect(message(() => parse(...line))).toBe(expected);
  });

  it.each(['', ' ', 'x', 'NaN', 'Infinity', '1e999'])('takes no %j for a number', (text) => {
    expect(() => number()(text)).toThrow('it must be a number');
    expect(() => integer()(text)).toThrow('it must be an integer');
  });

  it('takes what begins with -- as a value behind an equals sign', () => {
    expect(parse('--output-dir=--max-steps=2').outputDir).toBe('--max-steps=2');
  });

  it.each(['x'.repeat(256), 'é'.repeat(128), 'ab/'.repeat(2000)])(
    'takes what no file can be called for no name: %#',
    (name) => {
      expect(message(() => parse('--output-dir', name))).toMatch(
        /^--output-dir: the name is too long for a file system/,
      );
      expect(parse('--output-dir', name.slice(0, -1).slice(0, 4000)).outputDir).toBeDefined();
    },
  );

  it('says which value is wrong, however long it is', () => {
    const text = message(() => parse('--batch-size', '7'.repeat(10_000)));
    expect(text).toMatch(/^option '--batch-size <n>' argument '7+…7+' is invalid: it must be an integer from 1 to/);
    expect(text.length).toBeLessThan(300);
  });

  it.each([
    ['start', { npm_config_batch_size: 'true' }, 'npm start -- --batch-size …'],
    ['tool', { npm_config_shuffle: '' }, 'npm run tool -- --no-shuffle …'],
  ])('says that npm run needs --: %s %o', (script, environment, expected) => {
    for (const [name, value] of Object.entries({ npm_lifecycle_event: script, ...environment }))
      vi.stubEnv(name, value);
    try {
      expect(message(() => parse('5'))).toContain(`for itself: put -- before the options, ${expected}`);
    } finally {
      vi.unstubAllEnvs();
    }
  });

  it.each([
    ['--help', 'Usage: train'],
    ['--version', '1.2.3'],
  ])('%s prints and exits with 0', (flag, expected) => {
    const exit = vi.spyOn(process, 'exit').mockImplementation((code) => {
      throw new Error(`exit ${code}`);
    });
    const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
    try {
      expect(() => parse(flag)).toThrow('exit 0');
      expect(write.mock.calls.join()).toContain(expected);
    } finally {
      exit.mockRestore();
      write.mockRestore();
    }
  });
});

describe('--config', () => {
  it.each([
    [
      'run.yaml',
      'batch-size: 4   # kebab\nlearning_rate: 1e-2\nklCoef: 0.5\nfused: true\nshuffle: false\nbackend: wasm\n',
    ],
    [
      'run.json',
      '{"batch-size": 4, "learning_rate": 0.01, "klCoef": 0.5, "fused": true, "shuffle": false, "backend": "wasm"}',
    ],
  ])('%s sets what the command line does not', (name, text) => {
    expect(parse('--config', config(text, name), '--batch-size', '2')).toMatchObject({
      batchSize: 2,
      learningRate: 0.01,
      klCoef: 0.5,
      fused: true,
      shuffle: false,
      backend: 'wasm',
    });
  });

  it.each(['sizes: [1, 20, 3]', 'sizes:\n  - 1\n  - 20\n  - 3', 'sizes: 1,20,3'])('takes %j as a list', (text) => {
    expect(parse('--config', config(text)).sizes).toEqual([1, 20, 3]);
  });

  it('keeps text as it was written', () => {
    expect(parse('--config', config('output-dir: 007')).outputDir).toBe('007');
  });

  it.each([
    ['kl-coef: 0\nbach_size: 3', ":2: unknown option '--bach-size' (Did you mean --batch-size?)"],
    [
      '\nbatch-size: 0',
      ":2: option '--batch-size <n>' argument '0' is invalid: it must be an integer from 1 to 10000000",
    ],
    ['backend: gpu', ":1: option '--backend <name>' argument 'gpu' is invalid: allowed choices are auto, wasm."],
    ['kl-coef: null', ':1: "kl-coef" has no value'],
    ['kl-coef:', ':1: "kl-coef" has no value'],
    ['kl-coef: 1\nconfig: other.yaml', ':2: "config" cannot stand in a file, only on the command line'],
    ['kl-coef: [1, 2]', ':1: "kl-coef" must be a single value, not a list or mapping'],
    ['sizes: [1, [2]]', ':1: "sizes" must be a single value, not a list or mapping'],
    ['sizes: []', ':1: "sizes" has no value'],
    ['fused: 3', ':1: "fused" must be true or false, found "3"'],
    ['kl-coef: 1\nklCoef: 2', ':2: "klCoef" was set above already'],
    ['- kl-coef\n- 1', ':1: expected one "option: value" a line'],
    ['', ':1: expected one "option: value" a line'],
    ['kl-coef: 1\n  batch-size: 3', ':1: not valid YAML: Nested mappings are not allowed in compact mappings'],
  ])('says what is wrong with %j', (text, expected) => {
    const file = config(text);
    expect(message(() => parse('--config', file))).toBe(file + expected);
  });

  it.each([
    ['[', ']'],
    ['{"seed":', '}'],
    ['- ', ''],
    ['? ', ''],
  ])('ends with a sentence at any number of %j', (open, close) => {
    for (const depth of [200, 1000, 10_000, 100_000]) {
      const file = config(`${open.repeat(depth)}1${close.repeat(depth)}`);
      expect(message(() => parse('--config', file))).toMatch(/is too long, or too deeply nested: expected one/);
    }
  });

  it('says which file it cannot read', () => {
    expect(message(() => parse('--config', '/nowhere/run.yaml'))).toBe(
      '--config: cannot read /nowhere/run.yaml (ENOENT)',
    );
  });
});

describe('a resumed run', () => {
  const file = 'runs/x/config.json';
  const resume = (options: Record<string, unknown>, ...line: string[]) =>
    parseOptions(command(), ['node', 'train.ts', ...line], {
      saved: ({ resume }) => (resume ? { file, options } : undefined),
    });

  it('lies under --config, which lies under the command line', () => {
    const saved = { batchSize: 4, learningRate: 0.5, klCoef: 0.25, shuffle: false, resume: 'other', outputDir: 'old' };
    const options = resume(
      saved,
      '--resume',
      'latest',
      '--config',
      config('kl-coef: 2\nshuffle: true'),
      '--batch-size',
      '2',
    );
    expect(options).toMatchObject({ batchSize: 2, learningRate: 0.5, klCoef: 2, shuffle: true, resume: 'latest' });
    expect(options.outputDir).toBeUndefined();
  });

  it('is not asked for without --resume', () => {
    expect(resume({ batchSize: 4 }).batchSize).toBe(16);
  });

  it('has its values checked', () => {
    expect(message(() => resume({ batchSize: -4 }, '--resume', 'latest'))).toMatch(
      /^runs\/x\/config.json: option '--batch-size/,
    );
    for (const value of [{}, { a: 1 }, [[4]], [4, 5], 'x', null, true]) {
      const refusal = message(() => resume({ batchSize: value }, '--resume', 'latest'));
      expect(refusal).toMatch(
        /^runs\/x\/config.json: .*(--batch-size <n>' argument '.*' is invalid|"batchSize" has no value)/,
      );
    }
  });
});
