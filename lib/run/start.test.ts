import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, expect, test, vi } from 'vitest';
import type { BackendName } from '../backend/index.ts';
import type { Tokenizer } from '../checkpoint/tokenizer.ts';
import { type Communicator, soloCommunicator } from '../distributed/communicator.ts';
import { takeFasterGpu } from './faster_gpu.ts';
import { startRun } from './start.ts';

vi.mock('./faster_gpu.ts');

const folder = mkdtempSync(join(tmpdir(), 'start-'));
afterAll(() => rmSync(folder, { recursive: true }));
const modelName = join(folder, 'model');
cpSync('models/tiny', modelName, { recursive: true });
const write = (name: string, json: unknown) => writeFileSync(join(modelName, name), JSON.stringify(json));

type Flags = {
  systemPrompt?: string;
  chatTemplateKwargs?: string;
  templateDate?: string;
  batchSize?: number;
  backend?: BackendName;
};

/** Starts a run of which a prompt is the system prompt and "1+2"; returns it with what was printed. */
async function start(name: string, flags: Flags, more: { keepsBackend?: boolean; communicator?: Communicator } = {}) {
  const log = vi.spyOn(console, 'log').mockImplementation(() => {});
  let prompt = '';
  const size = { batchSize: 1, numGenerations: 2, numIterations: 1, miniBatchSize: 0, gradientAccumulationSteps: 1 };
  const steps = {
    maxSteps: 1,
    warmupSteps: 0,
    maxNewTokens: 4,
    topK: 0,
    evalSteps: 0,
    evalOnStart: false,
    evalSamples: 8,
    learningRate: 1e-3,
  };
  const saves = { loggingSteps: 1, saveSteps: 0, saveTotalLimit: 1 };
  const options = {
    ...size,
    ...steps,
    ...saves,
    backend: 'cpu' as BackendName,
    modelName,
    outputDir: join(folder, name),
    ...flags,
  };
  const buildPrompt = (tokenizer: Tokenizer, _: { source: string }, { systemPrompt = 'Add.' }: Flags) => {
    const ids = tokenizer.chat([
      { role: 'system', content: systemPrompt },
      { role: 'user', content: '1+2' },
    ]);
    prompt = tokenizer.decode(ids);
    return ids;
  };
  const problems = { train: [{ source: 'x:1' }], test: [] };
  const task = { experiment: 'experiment_x', ...problems, buildPrompt, shown: {}, reference: false };
  const { run, state } = await startRun(options, { ...task, ...more });
  const lines = log.mock.calls.flat().join('\n').split('\n');
  log.mockRestore();
  tf.disposeVariables();
  return { prompt, lines, run, eosTokenIds: state.model.config.eosTokenIds };
}

test("the tokenizer's end token ends completions too; this, and that there is no template, is said", async () => {
  write('generation_config.json', { eos_token_id: 0 });
  write('tokenizer_config.json', { eos_token: '<eos>', unk_token: '<unk>' });
  const { prompt, lines, eosTokenIds } = await start('plain', {});
  expect(eosTokenIds).toEqual([0, 1]);
  expect(lines).toContainEqual(expect.stringMatching(/^end tokens: "<pad>" \(0\) .* "<eos>" \(1\) in the tokenizer's/));
  expect(lines).toContain('no chat template: the prompt is system prompt and question, as plain text');
  expect(prompt).toBe('Add.\n1+2');
  expect((await start('no-system', { systemPrompt: '' })).prompt).toBe('1+2');
});

test('the options reach the chat template', async () => {
  write('generation_config.json', { eos_token_id: 1 });
  const chat_template =
    '{{ strftime_now("%d %b %Y") }} {{ thinking }}{% for m in messages %} {{ m.role }}: {{ m.content }}{% endfor %}';
  write('tokenizer_config.json', { eos_token: '<eos>', unk_token: '<unk>', chat_template });
  const flags = { templateDate: '2026-07-26', chatTemplateKwargs: '{"thinking":7}' };
  const { prompt, lines } = await start('template', flags);
  expect(prompt).toBe('26 Jul 2026 7 system: Add. user: 1+2');
  expect(lines).toHaveLength(2); // the backend and the run's folder
  expect((await start('merged', { ...flags, ...{ mergeSystemPrompt: true } })).prompt).toBe(
    '26 Jul 2026 7 user: Add.\n\n1+2',
  );
});

test('a GPU is tried once the model is known, if backend and ranks allow, and the run keeps to what came out', async () => {
  const take = vi.mocked(takeFasterGpu);
  const tried = async (...args: Parameters<typeof start>) => {
    take.mockClear();
    const { lines, run } = await start(...args);
    const { options } = JSON.parse(readFileSync(join(run.folder.folder, 'config.json'), 'utf8'));
    return { calls: take.mock.calls.length, line: lines[0], backend: options.backend };
  };
  const cpu = 'backend: cpu (plain JavaScript: slow, for tests)';
  expect(await tried('named', {})).toEqual({ calls: 0, line: cpu, backend: 'cpu' });
  expect(await tried('nothing', { backend: 'auto' })).toEqual({ calls: 1, line: cpu, backend: 'auto' });
  take.mockResolvedValue('what was found');
  const found = { calls: 1, line: 'backend: what was found', backend: 'cpu' }; // which is the backend then
  expect(await tried('found', { backend: 'auto' })).toEqual(found);
  expect(take.mock.calls[0][0].params).toHaveProperty(['model.embed_tokens.weight']);
  expect((await tried('kept', { backend: 'auto' }, { keepsBackend: true })).calls).toBe(0);
  vi.stubEnv('TFJS_GPU_TRIAL', 'off');
  expect((await tried('beside others', { backend: 'auto' })).calls).toBe(0);
  vi.unstubAllEnvs();
  const communicator = { ...soloCommunicator(), size: 2 };
  expect((await tried('ranks', { backend: 'auto', batchSize: 2 }, { communicator })).calls).toBe(0);
});
