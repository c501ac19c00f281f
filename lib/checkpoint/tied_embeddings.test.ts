import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { loadCheckpoint, saveCheckpoint } from './checkpoint.ts';
import { openSafetensors, pythonOrder, type TensorToWrite, writeSafetensors } from './safetensors.ts';

const fixtures = 'lib/model/fixtures';
const embedding = 'model.embed_tokens.weight';
const head = 'lm_head.weight';

let root: string;
beforeAll(async () => {
  await tf.setBackend('cpu');
  root = await mkdtemp(join(tmpdir(), 'tied-'));
});
afterAll(() => rm(root, { recursive: true }));

/** llama_gqa_tied with its embedding under other names. */
async function storedAs(names: string[], change = (values: Float32Array) => values): Promise<string> {
  const source = await mkdtemp(join(root, 'source-'));
  await cp(`${fixtures}/llama_gqa_tied/config.json`, join(source, 'config.json'));
  const original = await openSafetensors(`${fixtures}/llama_gqa_tied/model.safetensors`);
  const tensors: TensorToWrite[] = [];
  for (const [name, { shape }] of original.tensors) {
    const data = await original.read(name);
    if (name !== embedding) tensors.push({ name, dtype: 'F32', shape, data });
    else
      for (const name of names) tensors.push({ name, dtype: 'F32', shape, data: name === head ? change(data) : data });
  }
  await original.close();
  await writeSafetensors(join(source, 'model.safetensors'), tensors.sort(pythonOrder), { format: 'pt' });
  return source;
}

test.each([[[head]], [[embedding, head]]])('stored as %j: one parameter here, and saved as it was', async (names) => {
  const source = await storedAs(names);
  const { params, dtypes } = await loadCheckpoint(source);
  const usual = await loadCheckpoint(`${fixtures}/llama_gqa_tied`);
  expect(Object.keys(params)).toEqual(Object.keys(usual.params));
  expect(await params[embedding].data()).toEqual(await usual.params[embedding].data());
  const folder = await mkdtemp(join(root, 'saved-'));
  await saveCheckpoint(folder, { source, params }, { dtype: dtypes });
  tf.dispose([params, usual.params]);
  const file = 'model.safetensors';
  expect((await readFile(join(folder, file))).equals(await readFile(join(source, file)))).toBe(true);
});

test('refused if the two differ', async () => {
  const source = await storedAs([embedding, head], (values) => values.with(5, 1));
  await expect(loadCheckpoint(source)).rejects.toThrow(/differ, but config.json says that they are one/);
  const neither = await storedAs([]);
  await expect(loadCheckpoint(neither)).rejects.toThrow(/"model.embed_tokens.weight" is missing/);
});
