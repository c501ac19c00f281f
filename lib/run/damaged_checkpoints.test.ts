/**
 * Damaged checkpoints, through all that `--resume` does: each is refused in one line that leaves the run as it was, or the
 * damage is harmless and training goes on from the very state that was saved. `CASES=500` tries so many.
 */
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { createCommand } from '../../experiment_drgrpo/train.ts';
import { DAMAGES, type Draw, LAST, pick } from '../../testing/damage.ts';
import { writeTestData, writeTestModel } from '../../testing/model.ts';
import { dispose, fingerprint, STEPS, start, train } from '../../testing/runs.ts';
import { UserError } from '../errors.ts';
import { hashFile } from '../hashes.ts';
import { uniform } from '../random.ts';
import { isLock } from './lock.ts';

const SEED = 7;
const CASES = Number(process.env.CASES ?? 40);

const RUNS = [
  ['whole', '--seed', '1'],
  ['other seed', '--seed', '2'],
  ['adapter', '--lora-rank', '2'],
  ['other experiment', '--seed', '1'],
];
const commandOf = (name: string) => (name === 'other experiment' ? createCommand() : undefined);
/** What each run was at each checkpoint. */
const states = new Map<string, Map<number, string>>();

let root: string;
const at = (...names: string[]) => join(root, ...names);
beforeAll(async () => {
  root = mkdtempSync(join(tmpdir(), 'damaged-'));
  vi.spyOn(console, 'log').mockImplementation(() => {});
  await writeTestModel(at('model'));
  writeTestData(at('data.jsonl'), 4);
  const model = ['--model-name', at('model'), '--dataset', at('data.jsonl')];
  for (const [name, ...flags] of RUNS) {
    states.set(name, await train([...model, ...flags, '--output-dir', at('runs', name)], commandOf(name)));
  }
}, 120_000);
beforeEach(() => void vi.spyOn(console, 'log').mockImplementation(() => {}));
afterEach(() => vi.restoreAllMocks());
afterAll(() => rmSync(root, { recursive: true }));

/** The hash of every file below a folder, by its path. */
async function contents(folder: string): Promise<Record<string, string>> {
  const files = readdirSync(folder, { recursive: true, withFileTypes: true }).filter(
    (entry) => entry.isFile() && !isLock(entry.name),
  );
  const paths = files.map((entry) => join(entry.parentPath, entry.name)).sort();
  return Object.fromEntries(
    await Promise.all(paths.map(async (path) => [relative(folder, path), await hashFile(path)])),
  );
}

/** Resumes a damaged copy of a run. @returns the refusal, or the step from which it went on as it should */
async function resume(name: string, damage: (folder: string) => void, flags: string[] = []): Promise<string | number> {
  const folder = at('case');
  rmSync(folder, { recursive: true, force: true });
  cpSync(at('runs', name), folder, { recursive: true });
  damage(folder);
  const before = await contents(folder);
  try {
    const { run, state } = await start(['--resume', folder, ...flags], commandOf(name));
    const resumed = await fingerprint(state);
    dispose(state);
    expect(resumed, 'silently wrong').toBe(states.get(name)?.get(run.folder.step));
    return run.folder.step;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    expect(error.message).toMatch(/^[^\p{Cc}\p{Zl}\p{Zp}]{20,500}$/u);
    expect(await contents(folder), 'the run is as it was').toEqual(before);
    return error.message;
  }
}

const NEXT_BEST = /; --resume \S*case\/checkpoint-4 goes on from the one before it$/;

/** Rewrites a JSON file. */
function edit(file: string, change: (json: Record<string, unknown>) => unknown): void {
  const json = JSON.parse(readFileSync(file, 'utf8'));
  writeFileSync(file, JSON.stringify(change(json) ?? json));
}

describe('a damaged checkpoint is refused, and the one before it offered', () => {
  const state = `${LAST}/training_state.json`;
  const copy = (from: string, to: string) => (folder: string) =>
    cpSync(from.startsWith('checkpoint') ? join(folder, from) : at('runs', from), join(folder, to), {
      recursive: true,
    });
  it.each<[string, (folder: string) => void, RegExp]>([
    [
      '{} for training_state.json',
      (folder) => writeFileSync(join(folder, state), '{}'),
      /json is damaged: it does not/,
    ],
    ['no training_state.json', (folder) => rmSync(join(folder, state)), /checkpoint-6 has no training_state.json/],
    ['a torn training_state.json', (folder) => writeFileSync(join(folder, state), '{"exp'), /json: not valid JSON/],
    ['"4" for 4', (folder) => edit(join(folder, state), (json) => ({ ...json, optimizer_step: '6' })), /is damaged/],
    ['another number', (folder) => edit(join(folder, state), (json) => ({ ...json, optimizer_step: 7 })), /is damaged/],
    [
      'no hashes, as if an earlier version had saved it',
      (folder) => writeFileSync(join(folder, state), '{"optimizer_step": 6, "tokens": 600, "skipped": 0}'),
      /is damaged/,
    ],
    ['another name', (folder) => renameSync(join(folder, LAST), join(folder, 'checkpoint-8')), /checkpoint of step 6/],
    [
      'the weights of step 4',
      copy('checkpoint-4/model.safetensors', `${LAST}/model.safetensors`),
      /model.safetensors is/,
    ],
    [
      'the optimizer of step 4',
      copy('checkpoint-4/optimizer.safetensors', `${LAST}/optimizer.safetensors`),
      /optimizer.s.* is/,
    ],
    ['all of step 4', copy('checkpoint-4', LAST), /checkpoint-6 is the checkpoint of step 4, under another name/],
    ["another seed's", copy(`other seed/${LAST}`, LAST), /checkpoint-6 belongs to another run/],
    [
      "another experiment's",
      copy(`other experiment/${LAST}`, LAST),
      /checkpoint-6 belongs to a run of experiment_drgrpo/,
    ],
    ['no weights', (folder) => rmSync(join(folder, LAST, 'model.safetensors')), /model.safetensors is missing/],
    [
      'an adapter beside',
      copy(`adapter/${LAST}/adapter_config.json`, `${LAST}/adapter_config.json`),
      /adapter_config.json is not of/,
    ],
  ])('%s', async (_, damage, message) => {
    const refusal = await resume('whole', damage);
    expect(refusal).toMatch(message);
    expect(refusal).toMatch(NEXT_BEST);
  });

  it('another lora_alpha', async () => {
    const damage = (folder: string) =>
      edit(join(folder, LAST, 'adapter_config.json'), (json) => ({ ...json, lora_alpha: 8 }));
    expect(await resume('adapter', damage)).toMatch(/adapter_config.json is damaged, or not of this checkpoint/);
  });

  it('and that one goes on; where none is whole, the refusal says so', async () => {
    const spoil =
      (...steps: number[]) =>
      (folder: string) => {
        for (const step of steps) writeFileSync(join(folder, `checkpoint-${step}`, 'model.safetensors'), '');
      };
    expect(await resume('whole', spoil(6), ['--resume', at('case', 'checkpoint-4')])).toBe(4);
    expect(await resume('whole', spoil(4, 6))).toMatch(/case\/checkpoint-2 goes on from/);
    expect(await resume('whole', spoil(2, 4, 6))).toMatch(/there is no whole checkpoint before it: start a new run$/);
  });
});

describe('goes on', () => {
  it.each(['whole', 'adapter', 'other experiment'])('from what was not damaged, under any name: %s', async (name) => {
    expect(await resume(name, () => {})).toBe(STEPS);
  });

  it('from a checkpoint that was being replaced when the process was killed', async () => {
    expect(await resume('whole', (folder) => renameSync(join(folder, LAST), join(folder, `.${LAST}.replaced`)))).toBe(
      STEPS,
    );
    expect(existsSync(at('case', LAST))).toBe(true);
  });
});

/** What a run of an earlier version has: no id, and counters alone. */
function asBefore(folder: string, change: (counts: Record<string, unknown>) => unknown = () => {}): void {
  edit(join(folder, 'config.json'), ({ id, ...json }) => json);
  for (const step of [2, 4, 6]) {
    edit(join(folder, `checkpoint-${step}`, 'training_state.json'), ({ optimizer_step, counters }) => {
      const counts = { optimizer_step, ...(counters as object) };
      return (step === STEPS && change(counts)) || counts;
    });
  }
}

describe('a checkpoint of an earlier version', () => {
  it('goes on, with a warning', async () => {
    const warn = vi.spyOn(console, 'warn').mockImplementation(() => {});
    expect(await resume('whole', (folder) => asBefore(folder))).toBe(STEPS);
    expect(warn.mock.calls).toEqual([
      [expect.stringMatching(/checkpoint-6 was saved by an earlier version, without hashes/)],
    ]);
  });

  it.each<[string, (folder: string) => void, RegExp]>([
    ['{}', (folder) => asBefore(folder, () => ({})), /training_state.json is damaged/],
    ['"6" for 6', (folder) => asBefore(folder, (counts) => ({ ...counts, optimizer_step: '6' })), /is damaged/],
    ['a negative counter', (folder) => asBefore(folder, (counts) => ({ ...counts, tokens: -1 })), /is damaged/],
    [
      'm and v exchanged',
      (folder) => {
        asBefore(folder);
        exchangeMoments(folder);
      },
      /v\.\S+ is a mean of squares, and holds/,
    ],
  ])('is refused where it can be told: %s', async (_, damage, message) => {
    const refusal = await resume('whole', damage);
    expect(refusal).toMatch(message);
    expect(refusal).toMatch(NEXT_BEST);
  });
});

/** Gives the first moments the names of the second ones, and the other way round. */
function exchangeMoments(folder: string): void {
  const file = join(folder, LAST, 'optimizer.safetensors');
  const bytes = readFileSync(file);
  const end = 8 + Number(bytes.readBigUInt64LE());
  const header = bytes
    .toString('utf8', 8, end)
    .replace(/"([mv])\.(.*?)":/g, (_, moment, name) => `"${moment === 'm' ? 'v' : 'm'}.${name}":`);
  writeFileSync(file, Buffer.concat([bytes.subarray(0, 8), Buffer.from(header), bytes.subarray(end)]));
}

it(`any of ${CASES} damages, seed ${SEED}: refused, or harmless`, { timeout: 60_000 + 1000 * CASES }, async () => {
  const counts: Record<string, number> = {};
  for (let i = 0; i < CASES; i++) {
    let counter = 0;
    const draw: Draw = (n) => Math.floor(uniform(SEED, i, counter++) * n);
    const kind = pick(Object.keys(DAMAGES), draw);
    const name = pick(['whole', 'whole', 'adapter'], draw);
    let what = '';
    const damage = (folder: string) => {
      what = DAMAGES[kind]({ folder, name, runs: at('runs') }, draw);
    };
    const outcome = await resume(name, damage).catch((error) => {
      throw new Error(`number ${i}, ${kind}: ${what}: ${error.message}`, { cause: error });
    });
    const key = typeof outcome === 'string' ? 'refused' : `went on as it should from step ${outcome}`;
    counts[key] = (counts[key] ?? 0) + 1;
  }
  if (process.env.CASES) console.info(counts);
  expect(counts.refused).toBeGreaterThan(CASES / 2);
});
