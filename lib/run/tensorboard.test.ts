/** TensorBoard's event files, read back by what knows nothing of how they were written. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { BinaryReader, type WireType } from '@bufbuild/protobuf/wire';
import { afterAll, expect, it } from 'vitest';
import { at, run, SHORT } from '../../testing/script.ts';
import { readMetrics } from './metrics.ts';
import { createTensorBoard } from './tensorboard.ts';

const temp = mkdtempSync(join(tmpdir(), 'tensorboard-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** CRC-32C, bit by bit (RFC 3720, appendix B.4), and the mask of TFRecord. */
function maskedCrc(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  crc = ~crc >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

type Message = Map<number, (number | bigint | Uint8Array)[]>;
/** The fields of a message by their numbers, whatever they mean. */
function fieldsOf(bytes: Uint8Array): Message {
  const fields: Message = new Map();
  const reader = new BinaryReader(bytes);
  while (reader.pos < reader.len) {
    const [number, type] = reader.tag();
    const read = {
      0: () => reader.int64(),
      1: () => reader.double(),
      2: () => reader.bytes(),
      5: () => reader.float(),
    };
    const value = read[type as WireType.Varint]() as number | bigint | Uint8Array;
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}
const text = (value: unknown) => new TextDecoder().decode(value as Uint8Array);

/** All events of a folder's files, in their order: step, scalars, texts. */
function read(folder: string) {
  const files = readdirSync(folder).filter((name) => name.startsWith('events.out.tfevents.'));
  return files.sort().flatMap((name) => {
    const bytes = readFileSync(join(folder, name));
    const events: {
      step: number;
      version?: string;
      started: boolean;
      scalars: Record<string, number>;
      texts: Record<string, string>;
    }[] = [];
    for (let offset = 0; offset < bytes.length; ) {
      const length = Number(bytes.readBigUInt64LE(offset));
      const data = bytes.subarray(offset + 12, offset + 12 + length);
      expect(bytes.readUInt32LE(offset + 8)).toBe(maskedCrc(bytes.subarray(offset, offset + 8)));
      expect(bytes.readUInt32LE(offset + 12 + length)).toBe(maskedCrc(data));
      offset += length + 16;
      const event = fieldsOf(data);
      const values = (event.get(5) ?? []).flatMap((summary) => fieldsOf(summary as Uint8Array).get(1) ?? []);
      const [scalars, texts]: [Record<string, number>, Record<string, string>] = [{}, {}];
      for (const value of values.map((bytes) => fieldsOf(bytes as Uint8Array))) {
        const tag = text(value.get(1)![0]);
        if (value.has(2)) scalars[tag] = Number(value.get(2)![0]);
        else texts[tag] = text(fieldsOf(value.get(8)![0] as Uint8Array).get(8)![0]);
      }
      const version = event.get(3) && text(event.get(3)![0]);
      events.push({ step: Number(event.get(2)?.[0] ?? 0), version, started: event.has(7), scalars, texts });
    }
    return events;
  });
}

it('writes scalars and texts that are read back as they were', () => {
  const writer = createTensorBoard(temp, 0);
  writer.log({ step: 1, reward: 0.25, 'rewards/accuracy/mean': 1, note: 'not a number', none: Number.NaN });
  writer.text(2, 'completions', '| ümlaut |');
  const [head, start, first, second] = read(temp);
  expect(head).toMatchObject({ version: 'brain.Event:2', step: 0 });
  expect(start).toMatchObject({ started: true, step: 1 });
  expect(first).toMatchObject({ step: 1, scalars: { reward: 0.25, 'rewards/accuracy/mean': 1 } });
  expect(Object.keys(first.scalars)).toHaveLength(2);
  expect(second).toMatchObject({ step: 2, texts: { completions: '| ümlaut |' } });
});

it('has what metrics.jsonl has, also of a run that went on', async () => {
  const folder = at('reported');
  const report = ['--output-dir', folder, '--report-to', 'tensorboard', '--save-steps', '2'];
  expect(await run([...SHORT, '--max-steps', '4', ...report])).toMatchObject({ code: 0 });
  // Back to step 2: what is said of steps 3 and 4 is taken back.
  const back = ['--resume', join(folder, 'checkpoint-2'), '--max-steps', '5'];
  expect(await run(back)).toMatchObject({ code: 0 });
  const metrics = readMetrics(join(folder, 'metrics.jsonl'));
  const events = read(folder);
  const shown = new Map<number, Record<string, number>>();
  for (const { step, started, scalars } of events) {
    if (started) for (const later of [...shown.keys()]) if (later >= step) shown.delete(later);
    if (Object.keys(scalars).length > 0) shown.set(step, scalars);
  }
  expect([...shown.keys()]).toEqual(metrics.map(({ step }) => step));
  for (const { step, ...entry } of metrics) {
    const numbers = Object.entries(entry).filter(([, value]) => value !== null);
    expect(Object.keys(shown.get(step)!)).toEqual(numbers.map(([name]) => name));
    for (const [name, value] of numbers) expect(shown.get(step)![name]).toBe(Math.fround(Number(value)));
  }
  expect(events.find(({ texts }) => 'options' in texts)!.texts.options).toContain('| learningRate | 0.01 |');
  expect(events.filter(({ texts }) => 'completions' in texts)).toHaveLength(7); // 4 steps, and 3 after step 2
});
