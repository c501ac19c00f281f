/** For the tests of this folder: a policy that often calls, and what it is asked. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { createCommand, type Options, rollout } from '../experiment_multiturn_tool/train.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { createCalculator } from '../lib/environments/calculator.ts';
import { uniform } from '../lib/random.ts';
import { useBackend } from './backend.ts';
import { writeTestModel } from './model.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-tool-'));
export const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));

/** Ids of <tool:calc>, </tool> and 1: a policy that says these often calls often. */
const TALKATIVE = { favoured: [9, 11, 32], bias: 22, context: 160 };

await useBackend();
await writeTestModel(at('model'), TALKATIVE);
export const model = await loadCheckpoint(at('model'));
export const tokenizer = await loadTokenizer(at('model'));
export const calculator = await createCalculator();

export const optionsOf = (flags = ''): Options =>
  parseOptions(createCommand(), ['node', 'train.ts', ...flags.split(' ').filter(Boolean)]);

/** Conversations of a step. */
export const sample = (options: Options, { step = 1, tools = [calculator], problems = PROBLEMS } = {}) =>
  rollout(model, tokenizer, problems, (...token) => uniform(options.seed, step, ...token), tools, options);

export const PROBLEMS = ['1+2', '30*4', '7'].map((question, i) => ({
  question,
  answer: `${i}`,
  source: '',
  columns: {},
}));

export const FLAGS = '--num-generations 8 --max-turns 4 --max-turn-tokens 14 --max-tool-tokens 12 --max-new-tokens 40';
