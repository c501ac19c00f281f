import { type FileHandle, open } from 'node:fs/promises';
import { UserError } from '../errors.ts';
import { isObject } from '../json.ts';
import { shown } from '../text.ts';
import { bf16ToFloat32, type FloatDtype, f16ToFloat32, float32ToBf16, float32ToF16 } from './half_precision.ts';

/** Bytes of one element, for every dtype a safetensors file may hold. Only F32, F16, BF16 and I32 are ever read. */
const elementBytes: Record<string, number> = {
  ...{ F64: 8, I64: 8, U64: 8, F32: 4, I32: 4, U32: 4, F16: 2, BF16: 2, I16: 2, U16: 2 },
  ...{ F8_E4M3: 1, F8_E5M2: 1, I8: 1, U8: 1, BOOL: 1 },
};

/** Bytes that a header may have, as in Python's safetensors: a corrupt length must not fill the memory. */
const MAX_HEADER_BYTES = 100_000_000;

/** The one name in a header that is no tensor's. */
const METADATA = '__metadata__';

/** Values that are fetched, rounded and written at a time. */
const CHUNK = 2 ** 20;

/** Where a tensor lies: `begin` and `end` count bytes from the start of the file. */
type TensorEntry = { dtype: string; shape: number[]; begin: number; end: number };

export type SafetensorsFile = {
  file: string;
  tensors: Map<string, TensorEntry>;
  metadata: Record<string, string>;
  /** Values of an F32, F16 or BF16 tensor, row-major. Reads that tensor's bytes and no others. */
  read(name: string): Promise<Float32Array>;
  /** Values of an I32 tensor, row-major. */
  readInt32(name: string): Promise<Int32Array>;
  close(): Promise<void>;
};

export type TensorToWrite = {
  name: string;
  dtype: FloatDtype;
  shape: number[];
  /** Values, row-major, or a function that fetches those from `begin` to `end` (exclusive) when their turn comes. */
  data: Float32Array | ((begin: number, end: number) => Promise<Float32Array>);
};

/**
 * Opens a safetensors file and checks its whole header; tensor values stay on disk until they are asked for.
 * Format: header length (8 bytes, little-endian), JSON header, then the tensors' bytes without gaps
 * (https://huggingface.co/docs/safetensors).
 * @param file - path of the file
 * @throws {UserError} if the file is missing, truncated or corrupt; the message names the file and the tensor
 */
export async function openSafetensors(file: string): Promise<SafetensorsFile> {
  const handle = await openFile(file, 'r');
  try {
    const { tensors, metadata } = await readHeader(handle, file);
    const entryOf = (name: string, dtypes: string[]): TensorEntry => {
      const entry = tensors.get(name);
      if (!entry) throw new UserError(`${file}: there is no tensor ${shown(name)} in this file.`);
      if (dtypes.includes(entry.dtype)) return entry;
      throw new UserError(`${file}: tensor ${shown(name)} must be ${dtypes.join(', ')}, found ${entry.dtype}.`);
    };
    return {
      file,
      tensors,
      metadata,
      async read(name) {
        const { dtype, begin, end } = entryOf(name, ['F32', 'F16', 'BF16']);
        const bytes = await readBytes(handle, file, begin, end);
        if (dtype === 'F32') return new Float32Array(bytes);
        return dtype === 'BF16' ? bf16ToFloat32(new Uint16Array(bytes)) : f16ToFloat32(new Uint16Array(bytes));
      },
      async readInt32(name) {
        const { begin, end } = entryOf(name, ['I32']);
        return new Int32Array(await readBytes(handle, file, begin, end));
      },
      close: () => handle.close(),
    };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** The order in which Python's safetensors writes: by dtype, such that each tensor stays aligned, then by name. */
export function pythonOrder(a: { name: string; dtype: FloatDtype }, b: { name: string; dtype: FloatDtype }): number {
  const order: FloatDtype[] = ['F32', 'BF16', 'F16'];
  return order.indexOf(a.dtype) - order.indexOf(b.dtype) || (a.name < b.name ? -1 : 1);
}

/**
 * Writes tensors in the layout of Python's safetensors, a few MB at a time, and waits until they are on the disk.
 * The order is kept as given; {@link pythonOrder} is that of Python.
 * @param file - path to write; an existing file is replaced
 * @param tensors - names, shapes and values; F16 and BF16 are rounded to nearest, ties to even
 * @param metadata - free text entries, such as `{ format: 'pt' }` which Python's transformers asks for
 * @returns how many bytes all tensors take, without the header
 * @throws {UserError} if the file cannot be written
 */
export async function writeSafetensors(
  file: string,
  tensors: TensorToWrite[],
  metadata?: Record<string, string>,
): Promise<number> {
  let offset = 0;
  const entries = tensors.map(({ name, dtype, shape }) => {
    const begin = offset;
    offset += sizeOf(shape) * elementBytes[dtype];
    return [name, { dtype, shape, data_offsets: [begin, offset] }] as const;
  });
  const json = JSON.stringify({ ...(metadata && { [METADATA]: metadata }), ...Object.fromEntries(entries) });
  const header = Buffer.from(json.padEnd(json.length + ((8 - (Buffer.byteLength(json) % 8)) % 8), ' '));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));

  const handle = await openFile(file, 'w');
  try {
    await handle.writeFile(length);
    await handle.writeFile(header);
    for (const { name, dtype, shape, data } of tensors) {
      const size = sizeOf(shape);
      if (typeof data !== 'function' && data.length !== size) {
        throw new Error(`${name}: ${data.length} values do not fill the shape [${shape}]`);
      }
      for (let begin = 0; begin < size; begin += CHUNK) {
        const end = Math.min(begin + CHUNK, size);
        const values = typeof data === 'function' ? await data(begin, end) : data.subarray(begin, end);
        if (values.length !== end - begin) throw new Error(`${name}: ${values.length} values for ${begin} to ${end}`);
        const stored = dtype === 'F32' ? values : dtype === 'BF16' ? float32ToBf16(values) : float32ToF16(values);
        await handle.writeFile(new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength));
      }
    }
    await handle.sync();
    return offset;
  } catch (error) {
    throw asUserError(error, file, 'written');
  } finally {
    await handle.close();
  }
}

async function readHeader(handle: FileHandle, file: string): Promise<Pick<SafetensorsFile, 'tensors' | 'metadata'>> {
  const { size } = await handle.stat();
  if (size < 8) throw new UserError(`${file}: not a safetensors file: it has ${size} bytes, and needs at least 8.`);
  const headerBytes = Buffer.from(await readBytes(handle, file, 0, 8)).readBigUInt64LE();
  if (headerBytes > BigInt(size - 8)) {
    throw new UserError(
      `${file}: the header says it is ${headerBytes} bytes long, but the file has only ${size}: truncated, or not a safetensors file.`,
    );
  }
  if (headerBytes > MAX_HEADER_BYTES) {
    throw new UserError(
      `${file}: the header says it is ${headerBytes} bytes long; more than ${MAX_HEADER_BYTES} are not allowed: not a safetensors file, or a corrupt one.`,
    );
  }
  const dataBegin = 8 + Number(headerBytes);
  const header = parseHeader(await readBytes(handle, file, 8, dataBegin), file);

  // Not with `...rest`, nor Object.entries: to copy an object of very many names takes longer than to parse it.
  const { [METADATA]: metadata = {} } = header;
  if (!isObject(metadata) || Object.values(metadata).some((value) => typeof value !== 'string')) {
    throw new UserError(`${file}: "${METADATA}" in the header must map names to strings.`);
  }
  const tensors = new Map<string, TensorEntry>();
  for (const name of Object.keys(header)) {
    if (name !== METADATA) tensors.set(name, checkEntry(header[name], name, file, dataBegin));
  }

  // Sorted by place, each tensor must begin where the one before it ended: neither overlaps nor gaps.
  let position = dataBegin;
  for (const [name, { begin, end }] of [...tensors].sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position) {
      const found = begin < position ? 'overlaps the tensor before it' : 'leaves a gap before it';
      throw new UserError(`${file}: tensor ${shown(name)} ${found}: the file is corrupt.`);
    }
    if (end > size) {
      throw new UserError(
        `${file}: tensor ${shown(name)} ends at byte ${end}, but the file has only ${size}: it is truncated; download or copy it again.`,
      );
    }
    position = end;
  }
  if (position !== size) {
    throw new UserError(`${file}: ${size - position} bytes follow the last tensor: the file is corrupt.`);
  }
  return { tensors, metadata: metadata as Record<string, string> };
}

function parseHeader(bytes: ArrayBuffer, file: string): Record<string, unknown> {
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    header = JSON.parse(text);
  } catch {
    throw new UserError(`${file}: the header is not JSON: not a safetensors file, or a corrupt one.`);
  }
  if (!isObject(header)) throw new UserError(`${file}: the header must be a JSON object.`);
  // JSON.parse keeps the last of two equal names without a word: then the text holds more names than the object.
  const names = [...topLevelNames(text)];
  if (names.length === Object.keys(header).length) return header;
  const seen = new Set<string>();
  const twice = names.map((name) => JSON.parse(name)).find((name) => seen.size === seen.add(name).size);
  throw new UserError(`${file}: tensor ${shown(twice)} is listed twice in the header.`);
}

/** Names of the outermost object of a valid JSON text, repeated ones included, as they are written there. */
function* topLevelNames(json: string): Generator<string> {
  let depth = 0;
  let nameExpected = false;
  for (let i = 0; i < json.length; i++) {
    const char = json[i];
    if (char === '{' || char === '[') depth++;
    else if (char === '}' || char === ']') depth--;
    if (char === '{' || char === ',') nameExpected = depth === 1;
    if (char !== '"') continue;
    const start = i;
    while (json[++i] !== '"') if (json[i] === '\\') i++;
    if (nameExpected) yield json.slice(start, i + 1);
    nameExpected = false;
  }
}

function checkEntry(entry: unknown, name: string, file: string, dataBegin: number): TensorEntry {
  const fail = (problem: string) => new UserError(`${file}: tensor ${shown(name)} ${problem}.`);
  if (!isObject(entry)) throw fail('must be described by an object with dtype, shape and data_offsets');
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(elementBytes, dtype)) {
    throw fail(`has the unknown dtype ${shown(dtype)}; known are ${Object.keys(elementBytes).join(', ')}`);
  }
  if (!isSizes(shape)) throw fail(`must have a shape of non-negative integers, found ${shown(shape)}`);
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[1] < offsets[0]) {
    throw fail(`must have data_offsets [begin, end], found ${shown(offsets)}`);
  }
  const expected = sizeOf(shape) * elementBytes[dtype];
  if (offsets[1] - offsets[0] !== expected) {
    throw fail(
      `of shape ${shown(shape)} and dtype ${dtype} takes ${expected} bytes, but has ${offsets[1] - offsets[0]}`,
    );
  }
  return { dtype, shape, begin: dataBegin + offsets[0], end: dataBegin + offsets[1] };
}

const isSizes = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);

const sizeOf = (shape: number[]) => shape.reduce((product, size) => product * size, 1);

async function openFile(file: string, flags: 'r' | 'w'): Promise<FileHandle> {
  try {
    return await open(file, flags);
  } catch (error) {
    throw asUserError(error, file, flags === 'r' ? 'opened' : 'written');
  }
}

/** Bytes [begin, end) of a file. Callers have checked both against the file's size. */
async function readBytes(handle: FileHandle, file: string, begin: number, end: number): Promise<ArrayBuffer> {
  const bytes = new Uint8Array(end - begin);
  try {
    for (let done = 0; done < bytes.length; ) {
      // A single read is limited to 2 GiB.
      const { bytesRead } = await handle.read(bytes, done, Math.min(bytes.length - done, 2 ** 30), begin + done);
      if (bytesRead === 0) throw new UserError(`${file}: became shorter while it was being read.`);
      done += bytesRead;
    }
  } catch (error) {
    throw asUserError(error, file, 'read');
  }
  return bytes.buffer;
}

/** What the operating system refused (no such file, disk full) is for the user to mend; the rest is passed on. */
function asUserError(error: unknown, file: string, verb: string): unknown {
  const isSystemError = error instanceof Error && 'syscall' in error;
  return isSystemError ? new UserError(`${file}: cannot be ${verb}: ${error.message}`) : error;
}
