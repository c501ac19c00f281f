/** For tests: a sentence embedder so small that its embeddings can be worked out by hand. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/**
 * Writes a checkpoint as transformers.js reads it, whose hidden state of a token is the token's one-hot vector: the
 * cosine similarity of two texts is that of their counts of words. Words not in `words` all become `[UNK]`.
 * @param folder - is made; config.json, tokenizer.json, tokenizer_config.json and onnx/model.onnx are put there
 */
export function writeTestEmbedder(folder: string, words: string[]): void {
  const vocabulary = ['[PAD]', '[UNK]', ...words];
  const model = {
    type: 'WordPiece',
    unk_token: '[UNK]',
    continuing_subword_prefix: '##',
    max_input_chars_per_word: 100,
  };
  const tokenizer = {
    ...{ version: '1.0', added_tokens: [], post_processor: null, decoder: null },
    ...{ normalizer: { type: 'Lowercase' }, pre_tokenizer: { type: 'BertPreTokenizer' } },
    model: { ...model, vocab: Object.fromEntries(vocabulary.map((word, id) => [word, id])) },
  };
  const special = { pad_token: '[PAD]', unk_token: '[UNK]' };
  const files = {
    'config.json': { model_type: 'bert', vocab_size: vocabulary.length, hidden_size: vocabulary.length },
    'tokenizer.json': tokenizer,
    'tokenizer_config.json': { tokenizer_class: 'BertTokenizer', model_max_length: 64, ...special },
  };
  mkdirSync(join(folder, 'onnx'), { recursive: true });
  for (const [file, json] of Object.entries(files)) writeFileSync(join(folder, file), JSON.stringify(json));
  writeFileSync(join(folder, 'onnx', 'model.onnx'), lookupModel(vocabulary.length));
}

/** An ONNX model (https://onnx.ai/onnx/repo-docs/IR.html): input_ids (B, T) -> last_hidden_state (B, T, size), one-hot. */
function lookupModel(size: number): Buffer {
  const [FLOAT, INT64] = [1, 7];
  const table = new Float32Array(size * size).map((_, i) => (i % (size + 1) === 0 ? 1 : 0)); // the identity matrix
  const axis = (extent: string | number) => message([typeof extent === 'string' ? 2 : 1, extent]);
  const value = (name: string, type: number, shape: (string | number)[]) => {
    const tensor = message([1, type], [2, message(...shape.map((extent): Field => [1, axis(extent)]))]);
    return message([1, name], [2, message([1, tensor])]);
  };
  const graph = message(
    [1, message([1, 'table'], [1, 'input_ids'], [2, 'last_hidden_state'], [4, 'Gather'])],
    [2, 'lookup'],
    [5, message([1, size], [1, size], [2, FLOAT], [8, 'table'], [9, Buffer.from(table.buffer)])],
    [11, value('input_ids', INT64, ['B', 'T'])],
    [12, value('last_hidden_state', FLOAT, ['B', 'T', size])],
  );
  const [IR_VERSION, OPSET] = [8, 13];
  return message([1, IR_VERSION], [7, graph], [8, message([1, ''], [2, OPSET])]);
}

type Field = [number: number, value: number | string | Buffer];

/** A message in Protocol Buffers' encoding: a number is written as a varint, all else as its length and its bytes. */
function message(...fields: Field[]): Buffer {
  const parts = fields.map(([number, value]) => {
    if (typeof value === 'number') return Buffer.concat([varint(number << 3), varint(value)]);
    const bytes = Buffer.from(value as string);
    return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
  });
  return Buffer.concat(parts);
}

/** Seven bits a byte, the lowest first; the eighth bit says that more follow. */
const varint = (value: number): Buffer =>
  value < 128 ? Buffer.of(value) : Buffer.concat([Buffer.of((value & 127) | 128), varint(value >> 7)]);
