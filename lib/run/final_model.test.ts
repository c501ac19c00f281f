import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { loadPretrained } from '../checkpoint/pretrained.ts';
import { finishRun } from './final_model.ts';
import { openRun, type RunFolder } from './run_folder.ts';
import { createTrainingState } from './training_state.ts';

const SOURCE = 'lib/model/fixtures/llama_bf16';

describe('final_model of a bfloat16 checkpoint', () => {
  let root: string;
  let run: RunFolder;
  let printed: string[];
  beforeAll(useBackend);
  beforeEach(() => {
    root = mkdtempSync(join(tmpdir(), 'steps-'));
    run = openRun({ experiment: 'experiment_x', root, options: {} });
    run.log({ step: 0 });
    printed = [];
    vi.spyOn(console, 'log').mockImplementation((line) => void printed.push(line));
  });
  afterEach(() => {
    vi.restoreAllMocks();
    rmSync(root, { recursive: true });
  });

  type Options = { change: number; loraRank?: number } & Parameters<typeof finishRun>[3];

  /** Ends a run that multiplied every trained parameter by 1 + change. Returns the last line printed. */
  async function finish({ change, loraRank, folder, ...options }: Options & { folder?: string }): Promise<string> {
    const initial = await loadPretrained(SOURCE);
    const state = await createTrainingState(initial, {}, { loraRank, modelName: SOURCE, ...options });
    const trained = state.model.lora?.params ?? state.model.params;
    for (const name of Object.keys(trained)) {
      trained[name] = name.includes('lora_B')
        ? tf.fill(trained[name].shape, change)
        : tf.mul(trained[name], 1 + change);
    }
    await finishRun(run, state, { ...initial, ...(folder && { folder }) }, options);
    return printed.join('\n').split('\n').at(-1)!;
  }
  const curves = () => `curves: ${run.folder}/curves.svg`;
  const dtypesSaved = async () => {
    const config = JSON.parse(readFileSync(join(run.folder, 'final_model', 'config.json'), 'utf8'));
    const { dtypes } = await loadCheckpoint(join(run.folder, 'final_model'));
    return [config.torch_dtype ?? config.dtype, ...new Set(Object.values(dtypes))];
  };

  test('is bfloat16, and what that costs is said, with the remedy', async () => {
    expect(await finish({ change: 2 ** -10 })).toMatch(
      /^final_model has 16-bit weights: rounding took away 100 % of what training changed .*, after the last evaluation; to store all of it: node --import tsx .* --resume \S+ --save-dtype float32$/,
    );
    expect(await dtypesSaved()).toEqual(['bfloat16', 'BF16']);
  });

  test('and no remedy where it costs little', async () => {
    expect(await finish({ change: 1 / 3 })).toMatch(/took away 0\.\d+ % of what training changed .*evaluation$/);
  });

  test('is kept where the initial weights are gone, with which it is compared', async () => {
    cpSync(join(SOURCE, 'config.json'), join(root, 'moved', 'config.json'));
    expect(await finish({ change: 2 ** -10, folder: join(root, 'moved') })).toContain('took away an unknown share of');
    expect(await dtypesSaved()).toEqual(['bfloat16', 'BF16']);
  });

  test('is float32, or float16, where that is asked for', async () => {
    expect(await finish({ change: 2 ** -10, saveDtype: 'float32' })).toBe(curves());
    expect(await dtypesSaved()).toEqual(['float32', 'F32']);
    await finish({ change: 2 ** -10, saveDtype: 'float16' });
    expect(await dtypesSaved()).toEqual(['float16', 'F16']);
  });

  test('is an adapter in float32, of which nothing is lost, or all of it once it is merged', async () => {
    expect(await finish({ change: 1e-6, loraRank: 2 })).toBe(curves());
    const merged = await finish({ change: 1e-6, loraRank: 2, mergeAdapter: true });
    expect(merged).toContain('rounding took away 100 % of what');
    const idle = finish({ change: 1e-6, loraRank: 2, saveDtype: 'bfloat16' });
    await expect(idle).rejects.toThrow('--save-dtype bfloat16 is about a whole model');
  });
});
