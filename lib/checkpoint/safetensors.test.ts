import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { UserError } from '../errors.ts';
import type { FloatDtype } from './half_precision.ts';
import { openSafetensors, writeSafetensors } from './safetensors.ts';

const fixtures = 'lib/model/fixtures';
let folder: string;
let file: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'safetensors-'));
  file = join(folder, 'x.safetensors');
});
afterAll(() => rm(folder, { recursive: true }));

/** Writes a file with this header (text, or an object) and this many zero bytes of data. */
async function writeRaw(header: object | string, dataBytes: number, claimedHeaderBytes?: bigint) {
  const json = Buffer.from(typeof header === 'string' ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(claimedHeaderBytes ?? BigInt(json.length));
  await writeFile(file, Buffer.concat([length, json, Buffer.alloc(dataBytes)]));
}

async function roundTrip(dtype: FloatDtype, data: Float32Array) {
  await writeSafetensors(file, [{ name: 'a', dtype, shape: [data.length], data }]);
  const opened = await openSafetensors(file);
  const values = await opened.read('a');
  await opened.close();
  return values;
}

describe('reading', () => {
  test('finds the tensors that Python wrote', async () => {
    const opened = await openSafetensors(`${fixtures}/llama_gqa_tied/model.safetensors`);
    expect(opened.metadata).toEqual({ format: 'pt' });
    expect(opened.tensors.size).toBe(20);
    const entry = opened.tensors.get('model.layers.0.self_attn.k_proj.weight');
    expect(entry).toMatchObject({ dtype: 'F32', shape: [32, 64] });
    const values = await opened.read('model.norm.weight');
    await opened.close();
    const { begin, end } = opened.tensors.get('model.norm.weight')!;
    const bytes = await readFile(opened.file);
    expect(values).toHaveLength(64);
    expect(values[63]).toBe(bytes.readFloatLE(end - 4));
    expect(values[0]).toBe(bytes.readFloatLE(begin));
  });

  test('reads integers', async () => {
    const opened = await openSafetensors(`${fixtures}/llama_mha_untied/reference.safetensors`);
    const ids = await opened.readInt32('input_ids');
    await expect(opened.read('input_ids')).rejects.toThrow(/"input_ids" must be F32, F16, BF16, found I32/);
    await opened.close();
    expect([...ids.slice(0, 5)]).toEqual([96, 214, 80, 236, 45]);
  });

  test('refuses the name of a tensor that is not there', async () => {
    const opened = await openSafetensors(`${fixtures}/llama_bf16/model.safetensors`);
    await expect(opened.read('lm_head.weight')).rejects.toThrow(/no tensor "lm_head.weight"/);
    await opened.close();
  });
});

describe('writing', () => {
  test.each(['llama_gqa_tied', 'llama_bf16'])('rewrites %s byte for byte', async (name) => {
    const original = await openSafetensors(`${fixtures}/${name}/model.safetensors`);
    const tensors = [...original.tensors].map(([name, { dtype, shape }]) => {
      return { name, dtype: dtype as FloatDtype, shape, data: () => original.read(name) };
    });
    await writeSafetensors(file, tensors, original.metadata);
    await original.close();
    expect((await readFile(file)).equals(await readFile(original.file))).toBe(true);
  });

  test('aligns the data to 8 bytes, names beyond ASCII included', async () => {
    for (const name of ['a', 'ab', 'é', '水水']) {
      await writeSafetensors(file, [{ name, dtype: 'F32', shape: [], data: Float32Array.of(7) }]);
      const opened = await openSafetensors(file);
      expect(opened.tensors.get(name)!.begin % 8).toBe(0);
      expect(await opened.read(name)).toEqual(Float32Array.of(7));
      await opened.close();
    }
  });

  test('refuses a folder that is not there', async () => {
    await expect(writeSafetensors(join(folder, 'no', 'x'), [])).rejects.toThrow(UserError);
  });
});

describe('16-bit formats', () => {
  test('every half survives, and F32 is untouched', async () => {
    const all = Float32Array.from({ length: 0x7c01 }, (_, half) => {
      const exponent = half >> 10;
      if (exponent === 31) return Number.POSITIVE_INFINITY;
      return exponent ? (1 + (half & 1023) / 1024) * 2 ** (exponent - 15) : half * 2 ** -24;
    });
    const negative = all.map((value) => -value);
    expect(await roundTrip('F16', all)).toEqual(all);
    expect(await roundTrip('F16', negative)).toEqual(negative);
    expect(await roundTrip('F32', all)).toEqual(all);
  });

  test('F16 rounds to nearest, ties to even', async () => {
    const cases = [
      [1 + 2 ** -11, 1],
      [1 + 3 * 2 ** -11, 1 + 2 ** -9],
      [1 + 2 ** -11 + 2 ** -20, 1 + 2 ** -10],
      [2 ** -25, 0],
      [3 * 2 ** -25, 2 ** -23],
      [2 ** -25 + 2 ** -40, 2 ** -24],
      [-(2 ** -14) + 2 ** -26, -(2 ** -14)],
      [65519, 65504],
      [-65520, Number.NEGATIVE_INFINITY],
      [Number.NaN, Number.NaN],
    ];
    const rounded = await roundTrip(
      'F16',
      Float32Array.from(cases, ([value]) => value),
    );
    expect([...rounded]).toEqual(cases.map(([, expected]) => expected));
  });

  test('BF16 rounds to nearest, ties to even', async () => {
    const cases = [
      [1 + 2 ** -8, 1],
      [1 + 3 * 2 ** -8, 1 + 2 ** -6],
      [1 + 2 ** -8 + 2 ** -20, 1 + 2 ** -7],
      [-(1 + 2 ** -8), -1],
      [3.4028234663852886e38, Number.POSITIVE_INFINITY],
      [Number.NEGATIVE_INFINITY, Number.NEGATIVE_INFINITY],
      [Number.NaN, Number.NaN],
    ];
    const rounded = await roundTrip(
      'BF16',
      Float32Array.from(cases, ([value]) => value),
    );
    expect([...rounded]).toEqual(cases.map(([, expected]) => expected));
  });
});

describe('refuses, naming file and tensor', () => {
  const f32 = (shape: unknown, data_offsets: unknown) => ({ dtype: 'F32', shape, data_offsets });
  const broken: [string, object | string, number, RegExp][] = [
    ['a header that is not JSON', '{"a":', 0, /header is not JSON/],
    ['a header that is a list', '[]', 0, /header must be a JSON object/],
    ['a truncated file', { w: f32([4], [0, 16]) }, 12, /"w" ends at byte \d+, but the file has only \d+/],
    ['bytes after the end', { w: f32([4], [0, 16]) }, 20, /4 bytes follow/],
    ['overlaps', { v: f32([2], [0, 8]), w: f32([2], [4, 12]) }, 12, /"w" overlaps/],
    ['gaps', { v: f32([2], [0, 8]), w: f32([2], [12, 20]) }, 20, /"w" leaves a gap/],
    [
      'a shape that does not match',
      { w: f32([2, 3], [0, 16]) },
      16,
      /"w" of shape \[2,3\].* takes 24 bytes, but has 16/,
    ],
    ['an unknown dtype', { w: { ...f32([4], [0, 16]), dtype: 'F31' } }, 16, /"w" has the unknown dtype "F31"/],
    ['a dtype out of Object', { w: { ...f32([4], [0, 16]), dtype: 'constructor' } }, 16, /"w" has the unknown dtype/],
    ['negative sizes', { w: f32([-2, -2], [0, 16]) }, 16, /"w" must have a shape/],
    ['sizes that are not numbers', { w: f32([null], [0, 16]) }, 16, /"w" must have a shape/],
    ['sizes that are too large', { w: f32([2 ** 52, 2 ** 52, 2 ** 52], [0, 16]) }, 16, /"w" of shape/],
    ['offsets that go back', { w: f32([4], [16, 0]) }, 16, /"w" must have data_offsets/],
    ['no offsets', { w: { dtype: 'F32', shape: [4] } }, 16, /"w" must have data_offsets/],
    ['an entry that is a number', { w: 1 }, 16, /"w" must be described/],
    [
      'a name listed twice',
      '{"w\\"":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}, "w\\u0022":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
      0,
      /"w\\"" is listed twice/,
    ],
    ['metadata that is not text', { __metadata__: { a: 1 } }, 0, /__metadata__/],
  ];
  test.each(broken)('%s', async (_, header, dataBytes, message) => {
    await writeRaw(header, dataBytes);
    const error = await openSafetensors(file).catch((error) => error);
    expect(error).toBeInstanceOf(UserError);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(file);
  });

  test('a header larger than the file', async () => {
    await writeRaw({}, 0, 2n ** 63n);
    await expect(openSafetensors(file)).rejects.toThrow(/header says it is 9223372036854775808 bytes long/);
    await writeRaw({}, 0, 3n);
    await expect(openSafetensors(file)).rejects.toThrow(UserError);
  });

  test('a file too short, a folder, nothing at all', async () => {
    await writeFile(file, 'abc');
    await expect(openSafetensors(file)).rejects.toThrow(/has 3 bytes/);
    await expect(openSafetensors(folder)).rejects.toThrow(UserError);
    await expect(openSafetensors(join(folder, 'none.safetensors'))).rejects.toThrow(UserError);
  });
});

test('a header of very many names takes hardly longer than JSON.parse does', { retry: 2 }, async () => {
  const text = JSON.stringify(Object.fromEntries(Array.from({ length: 300_000 }, (_, i) => [i.toString(36), 0])));
  await writeRaw(text, 0);
  const fastest = async (action: () => unknown) => {
    let milliseconds = Infinity;
    for (let i = 0; i < 4; i++) {
      const start = performance.now();
      await action();
      milliseconds = Math.min(milliseconds, performance.now() - start);
    }
    return milliseconds;
  };
  const parsing = await fastest(() => JSON.parse(text));
  const opening = await fastest(() => expect(openSafetensors(file)).rejects.toThrow('"0" must be described'));
  expect(opening / parsing).toBeLessThan(4); // more than 5 with an object that is copied, and a JSON.parse for each name
});

test('400 corrupted files: each loads or ends in a UserError', async () => {
  const tensors = [
    { name: 'weight', dtype: 'F32' as const, shape: [20, 30], data: new Float32Array(600).fill(1.5) },
    { name: 'bias', dtype: 'BF16' as const, shape: [3], data: Float32Array.of(1, 2, 3) },
    { name: 'scale', dtype: 'F16' as const, shape: [1, 1], data: Float32Array.of(1) },
  ];
  await writeSafetensors(file, tensors, { format: 'pt' });
  const valid = await readFile(file);
  let state = 1;
  const random = (below: number) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0; // a linear congruential generator is enough here
    return Math.floor((state / 2 ** 32) * below);
  };
  const outcomes = { loaded: 0, refused: 0 };
  for (let round = 0; round < 400; round++) {
    let bytes = Buffer.from(valid);
    if (round % 4 === 0) bytes = bytes.subarray(0, random(bytes.length));
    else if (round % 4 === 1) bytes[random(8)] = random(256);
    else if (round % 4 === 2) for (let flips = 0; flips < 3; flips++) bytes[random(bytes.length)] ^= 1 << random(8);
    else {
      // Digits of shapes and offsets become other digits, or a sign.
      const digits = [...bytes.keys()].filter((i) => i >= 8 && bytes[i] >= 48 && bytes[i] <= 57);
      bytes[digits[random(digits.length)]] = '0123456789-e.'.charCodeAt(random(13));
    }
    await writeFile(file, bytes);
    try {
      const opened = await openSafetensors(file);
      try {
        for (const name of opened.tensors.keys()) await opened.read(name);
        outcomes.loaded++;
      } finally {
        await opened.close();
      }
    } catch (error) {
      if (!(error instanceof UserError)) throw new Error(`round ${round}`, { cause: error });
      outcomes.refused++;
    }
  }
  expect(outcomes.loaded).toBeGreaterThan(20);
  expect(outcomes.refused).toBeGreaterThan(200);
});
