import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it, vi } from 'vitest';
import { buildPrompt } from '../experiment_base/train.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { completionLogProbs } from '../lib/training/log_probs.ts';
import { BACKEND, NODE, REPOSITORY } from '../testing/processes.ts';
import { ask, createCommand } from './ask.ts';
import { loadPolicy, type Policy } from './policy.ts';

const temp = mkdtempSync(join(tmpdir(), 'ask-'));
afterAll(() => rmSync(temp, { recursive: true }));

let tiny: Policy;
beforeAll(async () => {
  vi.spyOn(console, 'log').mockImplementation(() => {});
  tiny = await loadPolicy('models/tiny', { backend: BACKEND as 'wasm' });
});

/** What is written in answer to a question, in the pieces in which it comes. */
async function answers(question: string, flags = '', policy = tiny): Promise<string[]> {
  const options = parseOptions(createCommand(), ['node', 'ask.ts', ...flags.split(' ').filter(Boolean)]);
  const pieces: string[] = [];
  await ask(policy, question, options, (text) => void pieces.push(text));
  return pieces;
}

const RIGHT = '<think>47+38=75 75-9=76</think><answer>76</answer>\n';

it('writes the greedy answer while it grows', async () => {
  const pieces = await answers('47+38-9');
  expect(pieces.join('')).toBe(RIGHT);
  expect(pieces.length).toBeGreaterThan(15);
});

it('shows the prompt, and of each token the log-probability that scoring gives it', async () => {
  const [prompt, answer, ...rest] = (await answers('47+38-9', '--verbose')).join('').split('\n');
  expect([prompt, `${answer}\n`]).toEqual(['<user>47+38-9<asst>', RIGHT]);
  const table = rest.slice(1, -1).map((line) => /^ +(-[\d.]+) +([\d.]+) % {2}(".*")$/.exec(line)!);
  const texts = table.map(([, , , token]) => JSON.parse(token));
  expect(texts.slice(0, 3)).toEqual(['<think>', '4', '7']);
  const completion = texts.flatMap((text) => tiny.tokenizer.encode(text, { addSpecialTokens: false }));
  const problem = { question: '47+38-9', answer: '', columns: {}, source: '' };
  const row = { prompt: buildPrompt(tiny.tokenizer, problem, tiny.options), completion };
  const logProbs = await completionLogProbs(tiny.model, [row], 1).logProbs.data();
  expect(table).toHaveLength(logProbs.length);
  for (const [i, [, logProb, percent]] of table.entries()) {
    expect(Number(logProb)).toBeCloseTo(logProbs[i], 2);
    expect(Number(percent)).toBeCloseTo(100 * Math.exp(logProbs[i]), 0);
  }
});

it('samples several, the same with the same seed, and says what each is worth', async () => {
  const [once, again, other] = [
    await answers('47+38-9', '--samples 5 --answer 76'),
    await answers('47+38-9', '--samples 5 --answer 76'),
    await answers('47+38-9', '--samples 5 --answer 76 --seed 1'),
  ].map((pieces) => pieces.join(''));
  expect(again).toBe(once);
  expect(other).not.toBe(once);
  const lines = once.trimEnd().split('\n');
  expect(lines.map((line) => line[0])).toEqual(['1', '2', '3', '4', '5']);
  for (const line of lines) {
    const value = line.includes('<answer>76</answer>') ? '1' : line.includes('<answer>') ? '0.1' : '0';
    expect(line).toMatch(new RegExp(`   reward ${value}$`));
  }
});

it('refuses what leaves no room for an answer', async () => {
  await expect(answers('1+'.repeat(200))).rejects.toThrow(/^the question: the prompt has 40\d tokens.*context of 256/);
});

it('takes a run for its final_model, and asks as the run did, whatever else its experiment knows', async () => {
  cpSync('models/tiny', join(temp, 'run/final_model'), { recursive: true });
  const options = { maxNewTokens: 5, lengthNormalization: 'max', klCoef: 0.1, evalDataset: null };
  writeFileSync(join(temp, 'run/config.json'), JSON.stringify({ experiment: 'experiment_drgrpo', options }));
  for (const name of ['run', 'run/final_model']) {
    const policy = await loadPolicy(join(temp, name), { backend: BACKEND as 'wasm' });
    expect(policy.options).toMatchObject({ maxNewTokens: 5, klCoef: 0.1 });
    expect((await answers('47+38-9', '', policy)).join('')).toBe('<think>47+3 … (cut after 5 tokens)\n');
    expect((await answers('47+38-9', '--max-new-tokens 32', policy)).join('')).toBe(RIGHT);
  }
});

it('makes the prompt as the command line says, else as the run did', async () => {
  const given = parseOptions(createCommand(), ['node', 'ask.ts', '--system-prompt', 'Be brief.']);
  const policy = await loadPolicy(join(temp, 'run'), { ...given, backend: BACKEND as 'wasm' });
  expect(policy.options).toMatchObject({ systemPrompt: 'Be brief.', maxNewTokens: 5 });
});

const script = (args: string[], input = '') => {
  const [node, ...flags] = NODE;
  return spawnSync(node, [...flags, 'tools/ask.ts', ...args], { cwd: REPOSITORY, input, encoding: 'utf8' });
};

it('reads a question a line; one that cannot be asked does not end it', () => {
  const { status, stdout, stderr } = script(['--backend', BACKEND], `1+2\n\n${'1+'.repeat(200)}\n47+38-9\n`);
  expect(stdout.split('\n').slice(2).join('\n')).toBe(`<think>1+2=3</think><answer>3</answer>\n${RIGHT}`);
  expect(stderr).toMatch(/^the question: the prompt has [^\n]+\n$/);
  expect(status).toBe(0);
});

it.each([
  [['47+38-9'], 'there is no folder "47+38-9": if it is the question, name the model first'],
  [['models/tiny', '1+1', '--samples', '0'], "option '--samples <n>' argument '0' is invalid"],
  [['lib', '1+1'], 'lib/config.json: there is no such file'],
])('refuses %s in a sentence', (args, sentence) => {
  const { status, stderr } = script(args);
  expect(stderr).toContain(`error: ${sentence}`);
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(status).toBe(2);
});
