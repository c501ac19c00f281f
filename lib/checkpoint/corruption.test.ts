/** A thousand damaged checkpoints: each is refused in one clear line, or the damage is harmless and it loads as it was. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest';
import { UserError } from '../errors.ts';
import { parameterShapes } from '../model/config.ts';
import { uniform } from '../random.ts';
import { loadCheckpoint } from './checkpoint.ts';

const SEED = 20_260;

/** A checkpoint to damage: the folder, its files as they were, and what loads from them. */
type Base = { folder: string; files: Map<string, Buffer>; values: Map<string, Uint32Array> };
/** A draw below n, an integer. */
type Draw = (n: number) => number;
type Damage = { file: string; bytes: Uint8Array; what: string };

let root: string;
const bases: Base[] = [];
beforeAll(async () => {
  await tf.setBackend('cpu');
  root = await mkdtemp(join(tmpdir(), 'corruption-'));
  for (const name of ['llama_bf16', 'llama_mha_untied']) {
    const folder = join(root, name);
    await cp(`lib/model/fixtures/${name}`, folder, { recursive: true });
    await rm(join(folder, 'reference.safetensors'));
    await writeFile(join(folder, 'generation_config.json'), '{"eos_token_id": [2, 3], "temperature": 0.7}');
    const files = new Map<string, Buffer>();
    for (const file of await readdir(folder)) files.set(file, await readFile(join(folder, file)));
    bases.push({ folder, files, values: (await load(folder)).values });
  }
});
afterEach(() => vi.unstubAllGlobals());
afterAll(() => rm(root, { recursive: true }));

/** Loads a checkpoint, and keeps the bits of its values; shapes must be those of its config. */
async function load(folder: string): Promise<{ values: Map<string, Uint32Array> }> {
  const { config, params } = await loadCheckpoint(folder);
  const shapes = Object.entries(params).map(([name, { shape }]) => [name, shape]);
  expect(shapes).toEqual(Object.entries(parameterShapes(config)));
  const values = new Map<string, Uint32Array>();
  for (const [name, tensor] of Object.entries(params)) {
    const { buffer, byteOffset, length } = tensor.dataSync();
    values.set(name, new Uint32Array(buffer.slice(byteOffset, byteOffset + 4 * length)));
  }
  tf.dispose(params);
  return { values };
}

/** The largest typed array or ArrayBuffer that is asked for from now on, in bytes. */
function watchAllocations(): { largest: number } {
  const seen = { largest: 0 };
  for (const name of [
    'ArrayBuffer',
    'Uint8Array',
    'Uint16Array',
    'Int32Array',
    'Uint32Array',
    'Float32Array',
  ] as const) {
    const original = globalThis[name] as { new (...args: unknown[]): ArrayBuffer; BYTES_PER_ELEMENT?: number };
    const watched: object = new Proxy(original, {
      construct(target, args, newTarget) {
        if (typeof args[0] === 'number')
          seen.largest = Math.max(seen.largest, args[0] * (target.BYTES_PER_ELEMENT ?? 1));
        return Reflect.construct(target, args, newTarget === watched ? target : newTarget);
      },
    });
    vi.stubGlobal(name, watched);
  }
  return seen;
}

/** @returns how many values are not as they were; undefined if the checkpoint was refused */
async function changedBy({ folder, files, values }: Base, { file, bytes }: Damage): Promise<number | undefined> {
  await writeFile(join(folder, file), bytes);
  const tensors = tf.memory().numTensors;
  const allocations = watchAllocations();
  const began = performance.now();
  try {
    const loaded = await load(folder);
    expect([...loaded.values.keys()]).toEqual([...values.keys()]);
    let changed = 0;
    for (const [name, bits] of loaded.values) {
      const original = values.get(name)!;
      if (Buffer.from(bits.buffer).equals(Buffer.from(original.buffer))) continue;
      changed += bits.filter((value, i) => value !== original[i]).length;
    }
    return changed;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
    expect(error.message).toMatch(/^[^\p{Cc}\p{Zl}\p{Zp}]{20,700}$/u);
    expect(error.message).toContain(join(folder, '/')); // and a file's name: of the damaged one, or of one that it names
    return undefined;
  } finally {
    vi.unstubAllGlobals();
    expect(performance.now() - began).toBeLessThan(10_000);
    expect(tf.memory().numTensors).toBe(tensors);
    // Twice, since bfloat16 becomes float32.
    const sizes = [...files].map(([name, original]) => (name === file ? bytes : original).length);
    expect(allocations.largest).toBeLessThanOrEqual(2 * Math.max(...sizes));
    await writeFile(join(folder, file), files.get(file)!);
  }
}

/**
 * Damages a checkpoint many times.
 * @param kind - what is damaged, for messages
 * @param outcome - what may come of it: `refused`, `harmless` (it may also load, with every value as it was) or `one value`
 * @param options.only - a file that the checkpoint must have
 */
function corrupt(
  kind: string,
  times: number,
  outcome: 'refused' | 'harmless' | 'one value',
  damage: (base: Base, draw: Draw) => Damage,
  { only = '' } = {},
): void {
  test(`${kind}, ${times} times`, async () => {
    const allowed = { refused: 0, harmless: 0, 'one value': 1 }[outcome];
    let refused = 0;
    for (let i = 0; i < times; i++) {
      let counter = 0;
      const draw: Draw = (n) => Math.floor(uniform(SEED, kind.length, i, counter++) * n);
      const fit = bases.filter(({ files }) => only === '' || files.has(only));
      const base = fit[i % fit.length];
      const done = damage(base, draw);
      try {
        const changed = await changedBy(base, done);
        if (changed === undefined) refused++;
        else expect(changed, 'values that are not as they were').toBeLessThanOrEqual(allowed);
        if (outcome === 'refused') expect(changed, 'loaded').toBeUndefined();
        if (outcome === 'one value') expect(changed, 'refused').toBeDefined();
      } catch (error) {
        const where = `${kind}, seed ${SEED}, number ${i}: ${done.what} in ${join(base.folder, done.file)}`;
        throw new Error(`${where}: ${(error as Error).message}`, { cause: error });
      }
    }
    if (outcome === 'harmless') expect(refused).toBeGreaterThan(0);
  });
}

const pick = <T>(items: readonly T[], draw: Draw): T => items[draw(items.length)];

const weightsOf = ({ files }: Base) => [...files.keys()].filter((file) => file.endsWith('.safetensors'));
/** Length and text of a safetensors header. */
function headerOf(bytes: Buffer): { length: number; text: string } {
  const length = Number(bytes.readBigUInt64LE());
  return { length, text: bytes.toString('utf8', 8, 8 + length) };
}

/** The same tensors behind another header. */
function withHeader(bytes: Buffer, header: Buffer | string): Buffer {
  const length = new BigUint64Array([BigInt(Buffer.byteLength(header))]);
  return Buffer.concat([Buffer.from(length.buffer), Buffer.from(header), bytes.subarray(8 + headerOf(bytes).length)]);
}

function flipped(bytes: Buffer, at: number, bit: number): { bytes: Buffer; what: string } {
  const copy = Buffer.from(bytes);
  copy[at] ^= 1 << bit;
  return { bytes: copy, what: `bit ${bit} of byte ${at} flipped` };
}

/** JSON texts that stand where another type, or a smaller number, is expected. */
const STRANGE = [
  ...['null', 'true', '0', '-1', '1.5', '1e308', '1e999', '2e9', '999', '4294967296', '9007199254740993'],
  ...['""', '"64"', '"a\\nb\\u2028"', '"../x"', '[]', '[[]]', '[[64], 64]', '[-64]', '[null]', '[1e308, 1e308]', '{}'],
  ...['{"toString": 1, "valueOf": 1}', '{"__proto__": {"length": 2}}', `"${'x'.repeat(50_000)}"`],
  ...[`${'['.repeat(30_000)}${']'.repeat(30_000)}`, `${'{"a":'.repeat(30_000)}1${'}'.repeat(30_000)}`],
];

/** Replaces one value, at any depth, by a strange one. */
function withStrangeValue(json: string, draw: Draw): { json: string; what: string } {
  const copy = JSON.parse(json);
  let parent = copy;
  let key = pick(Object.keys(parent), draw);
  const path = [key];
  // Half of the time deeper, where there is something deeper.
  while (typeof parent[key] === 'object' && parent[key] !== null && Object.keys(parent[key]).length > 0) {
    if (draw(4) === 0) break;
    parent = parent[key];
    key = pick(Object.keys(parent), draw);
    path.push(key);
  }
  const old = parent[key];
  const grown = typeof old === 'number' ? [old + 1, old + 2, old * 2, 2 ** 31 - 2, 2 ** 53] : [];
  const strange = pick([...STRANGE, ...grown.map(String)], draw);
  parent[key] = '@';
  return {
    json: JSON.stringify(copy).replace('"@"', () => strange),
    what: `${path.join(' ')} = ${strange.slice(0, 60)}`,
  };
}

/** Damages the keys of a JSON object: a key once more, without its value, a key that JavaScript knows, bytes that are no text. */
function withStrangeKey(json: string, draw: Draw): { json: Buffer; what: string } {
  const copy = JSON.parse(json);
  const key = pick(Object.keys(copy), draw);
  const name = JSON.stringify(key);
  const way = pick(['twice', 'removed', '__proto__', 'constructor', 'toString', 'invalid UTF-8', 'newline'], draw);
  const what = `${key}: ${way}`;
  const value = JSON.stringify(copy[key]);
  if (way === 'removed') {
    delete copy[key];
    return { json: Buffer.from(JSON.stringify(copy)), what };
  }
  if (way === 'invalid UTF-8') {
    const bytes = Buffer.from(json);
    bytes[bytes.indexOf(name) + 1 + draw(key.length)] = pick([0xff, 0xc0, 0x80, 0xed], draw);
    return { json: bytes, what };
  }
  const added = way === 'twice' ? name : way === 'newline' ? '"a\\n\\r\\u2028b"' : JSON.stringify(way);
  return { json: Buffer.from(json.replace(/}\s*$/, `,${added}:${value}}`)), what };
}

corrupt('length of the header', 120, 'refused', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const bytes = Buffer.from(base.files.get(file)!);
  const { length } = headerOf(bytes);
  const size = BigInt(bytes.length);
  const lengths = [0n, 1n, 7n, size, size - 8n, size - 7n, 2n ** 31n, 2n ** 32n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];
  if (draw(2) === 0) return { file, ...flipped(bytes, draw(8), draw(8)) };
  const claimed = pick([...lengths, BigInt(length - 1 - draw(length)), BigInt(length + 1 + draw(5000))], draw);
  bytes.writeBigUInt64LE(claimed);
  return { file, bytes, what: `length ${claimed}` };
});

corrupt('a bit of the header', 200, 'harmless', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const bytes = base.files.get(file)!;
  return { file, ...flipped(bytes, 8 + draw(headerOf(bytes).length), draw(8)) };
});

corrupt('a bit of the data', 80, 'one value', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const bytes = base.files.get(file)!;
  const begin = 8 + headerOf(bytes).length;
  return { file, ...flipped(bytes, begin + draw(bytes.length - begin), draw(8)) };
});

corrupt('cut off, or with something behind it', 100, 'refused', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const bytes = base.files.get(file)!;
  const extra = Buffer.alloc(1 + draw(100));
  if (draw(8) === 0) return { file, bytes: Buffer.concat([bytes, extra]), what: `${extra.length} more bytes` };
  const size = draw(pick([9, 8 + headerOf(bytes).length, bytes.length], draw));
  return { file, bytes: bytes.subarray(0, size), what: `cut to ${size} bytes` };
});

corrupt('values in the header', 200, 'harmless', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const { json, what } = withStrangeValue(headerOf(base.files.get(file)!).text, draw);
  return { file, bytes: withHeader(base.files.get(file)!, json), what };
});

corrupt('names in the header', 100, 'harmless', (base, draw) => {
  const file = pick(weightsOf(base), draw);
  const { json, what } = withStrangeKey(headerOf(base.files.get(file)!).text, draw);
  return { file, bytes: withHeader(base.files.get(file)!, json), what };
});

corrupt('config.json, generation_config.json', 120, 'harmless', (base, draw) => {
  const file = pick(['config.json', 'config.json', 'config.json', 'generation_config.json'], draw);
  const bytes = base.files.get(file)!;
  if (draw(8) === 0) return { file, bytes: bytes.subarray(0, draw(bytes.length)), what: 'cut off' };
  if (draw(8) === 0) return { file, ...flipped(bytes, draw(bytes.length), draw(8)) };
  const { json, what } = (draw(4) === 0 ? withStrangeKey : withStrangeValue)(bytes.toString(), draw);
  return { file, bytes: Buffer.from(json), what };
});

const ELSEWHERE = [
  ...['../model.safetensors', '/etc/x.safetensors', 'a/../b.safetensors', 'C:\\x.safetensors', '..', '.safetensors'],
  ...['a\0.safetensors', 'a\n.safetensors', 'a\u2028.safetensors', '\ud800.safetensors', 'config.json', '__proto__'],
  ...[`${'a'.repeat(5000)}.safetensors`, 'model-00003-of-00002.safetensors', 'model-00001-of-00002.safetensors'],
];

const damageIndex = ({ files }: Base, draw: Draw): Damage => {
  const file = 'model.safetensors.index.json';
  const bytes = files.get(file)!;
  if (draw(8) === 0) return { file, bytes: bytes.subarray(0, draw(bytes.length)), what: 'cut off' };
  if (draw(4) === 0) return { file, ...flipped(bytes, draw(bytes.length), draw(8)) };
  const index = JSON.parse(bytes.toString());
  if (draw(3) > 0) {
    const name = pick(Object.keys(index.weight_map), draw);
    index.weight_map[name] = pick(ELSEWHERE, draw);
    const what = `${name} in ${JSON.stringify(index.weight_map[name]).slice(0, 60)}`;
    return { file, bytes: Buffer.from(JSON.stringify(index)), what };
  }
  if (draw(2) === 0) {
    const { json, what } = withStrangeValue(bytes.toString(), draw);
    return { file, bytes: Buffer.from(json), what };
  }
  const map = withStrangeKey(JSON.stringify(index.weight_map), draw);
  return { file, bytes: Buffer.concat([Buffer.from('{"weight_map":'), map.json, Buffer.from('}')]), what: map.what };
};
corrupt('the index', 80, 'harmless', damageIndex, { only: 'model.safetensors.index.json' });
