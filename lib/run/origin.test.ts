/** A run belongs to the model that it was started from, wherever that lies. */
import { cpSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { writeTestData, writeTestModel } from '../../testing/model.ts';
import { dispose, fingerprint, STEPS, start, train } from '../../testing/runs.ts';
import { UserError } from '../errors.ts';
import { hashFile } from '../hashes.ts';
import { changedOptions } from './saved_options.ts';

let root: string;
/** A folder with two models, data and runs. */
let repository: string;
const at = (...names: string[]) => join(repository, ...names);
const states: Record<string, string> = {};
let printed: string[] = [];
const listen = () => void vi.spyOn(console, 'log').mockImplementation((line) => void printed.push(line));

beforeAll(async () => {
  listen();
  root = mkdtempSync(join(tmpdir(), 'origin-'));
  repository = join(root, 'repository');
  mkdirSync(repository);
  await writeTestModel(at('model'));
  await writeTestModel(at('other'), { bias: 2 });
  writeTestData(at('data.jsonl'), 4);
  const make = async (name: string, ...flags: string[]) => {
    const line = ['--dataset', at('data.jsonl'), '--output-dir', at(name), ...flags];
    states[name] = (await train(line)).get(STEPS)!;
  };
  await make('whole', '--model-name', at('model'));
  await make('adapted', '--model-name', at('model'), '--lora-rank', '2');
  await make('further', '--model-name', at('adapted', 'checkpoint-4'));
}, 120_000);
beforeEach(() => {
  printed = [];
  listen();
});
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(root, { recursive: true }));

/** Moves a folder for as long as something is done. */
async function moved<T>(from: string, to: string, during: () => Promise<T>): Promise<T> {
  renameSync(from, to);
  return during().finally(() => renameSync(to, from));
}

/** Writes another content into a file for as long as something is done. */
async function changed<T>(file: string, content: Uint8Array | string, during: () => Promise<T>): Promise<T> {
  const before = readFileSync(file);
  writeFileSync(file, content);
  return during().finally(() => writeFileSync(file, before));
}

/** Resumes a run, which must go on from where it was. @returns its config.json, and the settings of its adapter */
async function goesOn(name: string, ...flags: string[]) {
  const { state, run } = await start(['--resume', at(name), '--dataset', at('data.jsonl'), ...flags]);
  const { settings } = state.model.lora ?? {};
  const resumed = await fingerprint(state);
  dispose(state);
  expect(run.folder.step).toBe(STEPS);
  expect(resumed).toBe(states[name]);
  return { settings, config: JSON.parse(readFileSync(at(name, 'config.json'), 'utf8')) };
}

async function refusal(name: string, ...flags: string[]): Promise<string> {
  const before = readFileSync(at(name, 'config.json'), 'utf8');
  const error = await start(['--resume', at(name), ...flags]).catch((error) => error);
  expect(error).toBeInstanceOf(UserError);
  expect(error.message).not.toContain('\n');
  expect(readFileSync(at(name, 'config.json'), 'utf8')).toBe(before);
  return error.message;
}

describe('a run goes on with what it was started from', () => {
  it('which config.json names, with a hash of each file that counts', async () => {
    const { config } = await goesOn('further');
    const { model, adapter } = config.origin;
    expect(model.name).toBe(at('model'));
    expect(Object.keys(model.files)).toEqual([
      'config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    expect(model.files['model.safetensors']).toBe(await hashFile(at('model', 'model.safetensors')));
    expect(adapter.name).toBe(at('adapted', 'checkpoint-4'));
    expect(Object.keys(adapter.files)).toEqual(['adapter_config.json', 'adapter_model.safetensors']);
    expect(printed.join('\n')).not.toContain('other options');
  });

  it.each(['whole', 'adapted', 'further'])('when model and run were moved together, and back: %s', async (name) => {
    const [there, back] = [join(root, 'moved'), repository];
    await moved(back, there, async () => {
      repository = there;
      const { config, settings } = await goesOn(name).finally(() => {
        repository = back;
      });
      expect(config.origin.model.name).toBe(join(there, 'model'));
      if (name !== 'whole') expect(settings?.base_model_name_or_path).toBe(join(there, 'model'));
    });
    expect((await goesOn(name)).config.origin.model.name).toBe(at('model'));
  });

  it('when the run was moved, or renamed', async () => {
    states.renamed = states.adapted;
    await moved(at('adapted'), at('renamed'), () => goesOn('renamed'));
  });

  it('when its model was moved, and is named', async () => {
    await moved(at('model'), at('elsewhere'), async () => {
      expect(await refusal('whole')).toBe(
        `${at('whole')} was started from ${at('model')}, which is no longer there: name it with --model-name`,
      );
      for (const name of ['whole', 'adapted']) await goesOn(name, '--model-name', at('elsewhere'));
      expect(printed).toContainEqual(
        expect.stringContaining(`than before: --model-name ${at('elsewhere')} (was ${at('model')})`),
      );
    });
    for (const name of ['whole', 'adapted']) await goesOn(name, '--model-name', at('model'));
  });
});

describe('a run is refused', () => {
  it.each(['whole', 'adapted', 'further'])('with another model: %s', async (name) => {
    expect(await refusal(name, '--model-name', at('other'))).toMatch(
      /other is not what \S+ was started from \(\S+\): its \S+ differs; leave out --model-name, or start a new run$/,
    );
  });

  it.each(['model.safetensors', 'tokenizer_config.json', 'config.json'])('where %s has changed', async (file) => {
    const bytes = readFileSync(at('model', file));
    const other = file.endsWith('.json') ? `${bytes} ` : bytes.with(-1, bytes.at(-1)! ^ 1);
    const message = await changed(at('model', file), other, () => refusal('adapted'));
    expect(message).toBe(
      `${at('model')} is not what ${at('adapted')} was started from (${at('model')}): its ${file} differs; put back what was there, or name a folder that has it with --model-name`,
    );
  });

  it('where a file has come or gone', async () => {
    writeFileSync(at('model', 'chat_template.jinja'), '');
    expect(await refusal('whole')).toContain('its chat_template.jinja differs');
    rmSync(at('model', 'chat_template.jinja'));
    expect(await moved(at('model', 'tokenizer_config.json'), at('aside'), () => refusal('whole'))).toContain(
      'its tokenizer_config.json differs',
    );
  });

  it.each(['1', '{}', '{"model": {"name": "x"}}', '{"model": {"name": 1, "files": {}}}', 'null'])(
    'where config.json says of its origin %s',
    async (origin) => {
      const config = JSON.parse(readFileSync(at('whole', 'config.json'), 'utf8'));
      const text = JSON.stringify({ ...config, origin: JSON.parse(origin) });
      expect(await changed(at('whole', 'config.json'), text, () => refusal('whole'))).toMatch(
        /config.json: "origin" must say what the run was started from, found /,
      );
    },
  );
});

describe('a run of an earlier version, which does not say', () => {
  beforeEach(() => void vi.spyOn(console, 'warn').mockImplementation(() => {}));

  /** The run as an earlier version has left it. */
  function asBefore(name: string): string {
    const folder = `${name} before`;
    rmSync(at(folder), { recursive: true, force: true });
    cpSync(at(name), at(folder), { recursive: true });
    const rewrite = (file: string, change: (json: Record<string, object>) => object) =>
      writeFileSync(at(folder, file), JSON.stringify(change(JSON.parse(readFileSync(at(folder, file), 'utf8')))));
    rewrite('config.json', ({ experiment, options }) => ({ experiment, options }));
    rewrite('checkpoint-6/training_state.json', ({ optimizer_step, counters }) => ({ optimizer_step, ...counters }));
    states[folder] = states[name];
    return folder;
  }

  it.each(['whole', 'adapted', 'further'])('goes on, with one warning, and says from then on: %s', async (name) => {
    const { config } = await goesOn(asBefore(name));
    expect(config.origin.model.name).toBe(at('model'));
    expect(vi.mocked(console.warn).mock.calls).toHaveLength(1);
  });

  it('also where the model was moved, and is named', async () => {
    const folder = asBefore('adapted');
    await moved(at('model'), at('elsewhere'), () => goesOn(folder, '--model-name', at('elsewhere')));
  });

  it('refuses a model of another shape', async () => {
    expect(await refusal(asBefore('whole'), '--model-name', 'models/tiny_qa')).toMatch(
      /checkpoint-6 holds another kind of model than --model-name: leave that out$/,
    );
  });
});

it('options that are not as before are listed in one line', () => {
  const before = { learningRate: 0.00025, loraTarget: ['q_proj'], klCoef: 0, outputDir: 'a' };
  expect(changedOptions(before, { ...before, outputDir: undefined, resume: 'a', config: 'b' })).toEqual([]);
  expect(changedOptions(before, { ...before, topK: 4 }, { complete: false })).toEqual([]);
  expect(changedOptions(before, { ...before, learningRate: 1e-4, loraTarget: ['q_proj', 'k_proj'], topK: 4 })).toEqual([
    'resuming with other options than before: --learning-rate 0.0001 (was 0.00025), --lora-target q_proj,k_proj (was q_proj), --top-k 4 (was not set)',
  ]);
});
