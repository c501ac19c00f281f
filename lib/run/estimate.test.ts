import { beforeAll, describe, expect, it } from 'vitest';
import { createCommand } from '../../experiment_base/train.ts';
import { UserError } from '../errors.ts';
import { type LlamaConfig, readConfig } from '../model/config.ts';
import { checkCompletions, checkSize } from './estimate.ts';

const GB = 1e9;
let config: LlamaConfig; // models/tiny: 110 tokens, 128 wide, context 256; 4 layers × 2 KV heads × 32
beforeAll(async () => {
  config = await readConfig('models/tiny');
});

const optionsOf = (flags: string) => createCommand().parse(flags.split(' ').filter(Boolean), { from: 'user' }).opts();

it('takes what all experiments do without options, without a word', () => {
  expect(checkSize(config, optionsOf(''), 1 * GB)).toEqual([]);
});

describe('refuses what cannot be, and names what to change', () => {
  it.each([
    ['--max-new-tokens 256', /^--max-new-tokens 256 is too much: the model's context is 256 tokens/],
    ['--top-k 111', /^--top-k 111 is too much: the model knows 110 tokens; 0 samples from all$/],
    ['--lora-rank 129', /^--lora-rank 129 is too much: .* has a rank above 128/],
    // 1.04 million parameters × 4 numbers × 4 bytes
    ['', /^the model and what its training keeps take 0\.0\d+ GB, and there are 0\.0100 GB .*: pass --lora-rank/, 0.01],
    [
      '--lora-rank 128',
      /^the model and .* keeps take 0\.0\d+ GB, .*: lower --lora-rank, or take a smaller model$/,
      0.01,
    ],
    // 4 × 65,536 × 255 × 2 × 4 × 2 × 32 bytes
    [
      '--batch-size 256 --num-generations 256 --max-new-tokens 255',
      /^the keys and values of .* take 34\.2 GB, and there are 4\.00 GB for tensors: lower one of them$/,
      4,
    ],
  ])('%s', (flags, message, memory = 8) => {
    const check = () => checkSize(config, optionsOf(flags), memory * GB);
    expect(check).toThrow(message);
    expect(check).toThrow(UserError);
  });

  it.each(['--max-new-tokens 255', '--top-k 110', '--lora-rank 128'])('but not what just fits: %s', (flags) => {
    expect(checkSize(config, optionsOf(flags), 8 * GB)).toEqual([]);
  });

  it('keys and values that fit if completions are a quarter as long as they may be', () => {
    const flags = '--batch-size 256 --num-generations 256 --max-new-tokens 255';
    expect(checkSize(config, optionsOf(flags), 8.6 * GB)).toEqual([]);
  });

  it('more completions than any machine samples', () => {
    expect(() => checkCompletions(optionsOf('--batch-size 65536 --num-generations 2'))).toThrow(
      '--batch-size 65536 × --num-generations 2 are 131072 completions a step, of at most 65536: lower one of them',
    );
    expect(() => checkCompletions(optionsOf('--batch-size 65536 --num-generations 2'))).toThrow(UserError);
    checkCompletions(optionsOf('--batch-size 8192 --num-generations 8'));
  });
});

it.each([
  ['--max-steps 2', ['--warmup-steps 5 is longer than the run, which has 2 updates: the learning rate never gets']],
  ['--max-steps 5', []],
  ['--max-steps 1 --num-iterations 3 --mini-batch-size 128', []], // 6 updates
])('says so where the learning rate never gets as high as it should: %s', (flags, expected) => {
  const notes = checkSize(config, optionsOf(flags), 1 * GB);
  expect(notes).toEqual(expected.map((text) => expect.stringContaining(text)));
});
