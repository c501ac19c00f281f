/** A run's metrics as TensorBoard reads them: an event file, of records that frame protocol buffers. */
import { hostname } from 'node:os';
import { join } from 'node:path';
import { BinaryWriter, WireType } from '@bufbuild/protobuf/wire';
import crc32c from 'crc-32/crc32c.js';
import { appendToFile } from '../folders.ts';
import type { Reporter } from './metrics.ts';

/**
 * Writes `events.out.tfevents.<seconds>.<host>` into a folder: numbers as scalars, texts as texts.
 * @param step - the step that the run goes on from, -1 for none: what earlier files of the folder say of later ones, TensorBoard drops
 */
export function createTensorBoard(folder: string, step: number): Reporter {
  const file = join(folder, `events.out.tfevents.${Math.floor(Date.now() / 1000)}.${hostname()}`);
  const write = (event: BinaryWriter) => appendToFile(file, record(event.finish()));
  write(eventAt(0).tag(EVENT.fileVersion, WireType.LengthDelimited).string('brain.Event:2'));
  const started = new BinaryWriter().tag(1, WireType.Varint).int32(1); // SessionLog.status = START
  write(
    eventAt(step + 1)
      .tag(EVENT.sessionLog, WireType.LengthDelimited)
      .bytes(started.finish()),
  );
  return {
    log({ step, ...metrics }) {
      const summary = new BinaryWriter();
      for (const [name, value] of Object.entries(metrics)) {
        if (Number.isFinite(value)) nested(summary, 1, scalar(name, value as number));
      }
      write(nested(eventAt(step), EVENT.summary, summary));
    },
    text(step, name, text) {
      write(nested(eventAt(step), EVENT.summary, nested(new BinaryWriter(), 1, textValue(name, text))));
    },
    close: async () => {},
  };
}

/** Fields of `Event` (tensorflow/core/util/event.proto). */
const EVENT = { wallTime: 1, step: 2, fileVersion: 3, summary: 5, sessionLog: 7 };
/** Fields of `Summary.Value` (tensorflow/core/framework/summary.proto). */
const VALUE = { tag: 1, simpleValue: 2, tensor: 8, metadata: 9 };
/** Fields of `TensorProto`, and its type of strings (tensorflow/core/framework/tensor.proto, types.proto). */
const TENSOR = { dtype: 1, stringValue: 8, DT_STRING: 7 };

const eventAt = (step: number): BinaryWriter =>
  new BinaryWriter()
    .tag(EVENT.wallTime, WireType.Bit64)
    .double(Date.now() / 1000)
    .tag(EVENT.step, WireType.Varint)
    .int64(step);

/** A message within another one. */
const nested = (outer: BinaryWriter, field: number, inner: BinaryWriter): BinaryWriter =>
  outer.tag(field, WireType.LengthDelimited).bytes(inner.finish());

const tagged = (name: string): BinaryWriter => new BinaryWriter().tag(VALUE.tag, WireType.LengthDelimited).string(name);

const scalar = (name: string, value: number): BinaryWriter =>
  tagged(name).tag(VALUE.simpleValue, WireType.Bit32).float(value);

/** What the plugin for texts shows, as Markdown. */
function textValue(name: string, text: string): BinaryWriter {
  const tensor = new BinaryWriter().tag(TENSOR.dtype, WireType.Varint).int32(TENSOR.DT_STRING);
  tensor.tag(TENSOR.stringValue, WireType.LengthDelimited).bytes(new TextEncoder().encode(text));
  const plugin = new BinaryWriter().tag(1, WireType.LengthDelimited).string('text'); // PluginData.plugin_name
  return nested(
    nested(tagged(name), VALUE.tensor, tensor),
    VALUE.metadata,
    nested(new BinaryWriter(), 1, plugin), // SummaryMetadata.plugin_data
  );
}

/** A record of TFRecord: length, its checksum, the bytes, and theirs. */
function record(bytes: Uint8Array): Uint8Array {
  const record = Buffer.alloc(bytes.length + 16);
  record.writeBigUInt64LE(BigInt(bytes.length), 0);
  record.writeUInt32LE(masked(record.subarray(0, 8)), 8);
  record.set(bytes, 12);
  record.writeUInt32LE(masked(bytes), 12 + bytes.length);
  return record;
}

/** CRC-32C, turned and moved, so that the checksum of bytes that hold a checksum is not a special one. */
function masked(bytes: Uint8Array): number {
  const crc = crc32c.buf(bytes) >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}
