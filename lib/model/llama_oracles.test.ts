/** The forward pass and its gradient against transformers. */
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import * as tf from '@tensorflow/tfjs';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { useBackend } from '../../testing/backend.ts';
import { fixtures, weightedNll, worst, worstGradient } from '../../testing/gradients.ts';
import { loadCheckpoint } from '../checkpoint/checkpoint.ts';
import { openSafetensors } from '../checkpoint/safetensors.ts';
import { loadTokenizer } from '../checkpoint/tokenizer.ts';
import { generate } from '../generation/generate.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { completionLogProbs } from '../training/log_probs.ts';
import { logits } from './llama.ts';
import type { Model } from './model.ts';

const shared = '../shared';
const random = ['llama_gqa_tied', 'llama_mha_untied', 'llama3_rope_scaling', 'llama_bf16'];
/** Checkpoints of which there is no copy here: their folder is that of the oracles. */
const elsewhere = ['qwen2_bias_tied', 'qwen3_qknorm_tied'];
const pretrained = ['TinyStories-656K', 'stories260K-hf'];
const oracles = existsSync(`${shared}/oracles/hf`) ? '' : ` (skipped: there is no ${shared}/oracles)`;
const weights = existsSync(`${shared}/weights`) ? '' : ` (skipped: there is no ${shared}/weights)`;

const greedy = { temperature: 0, topK: 0, topP: 1, eosTokenIds: [], random: () => 0 };

beforeAll(useBackend);

/** Opens a reference file; matrices come back as rows. */
async function openReference(file: string) {
  const reference = await openSafetensors(file);
  const rows = <Values extends Float32Array | Int32Array>(name: string, values: Values): number[][] => {
    const width = reference.tensors.get(name)!.shape.at(-1)!;
    return Array.from({ length: values.length / width }, (_, i) =>
      Array.from(values.subarray(i * width, (i + 1) * width)),
    );
  };
  return {
    read: (name: string) => reference.read(name),
    floats: async (name: string) => rows(name, await reference.read(name)),
    ints: async (name: string) => rows(name, await reference.readInt32(name)),
    close: () => reference.close(),
  };
}
type Reference = Awaited<ReturnType<typeof openReference>>;

let model: Model;
let reference: Reference;
async function open(checkpoint: string, file: string): Promise<void> {
  model = await loadCheckpoint(checkpoint);
  reference = await openReference(file);
}
async function close(): Promise<void> {
  tf.dispose(model.params);
  await reference.close();
}

const logitsOf = async (tokens: number[]) => (await logits(model, tokens).array()) as number[][];

async function expectLogits(): Promise<void> {
  const ids = await reference.ints('input_ids');
  const expected = await reference.floats('logits');
  const actual = (await Promise.all(ids.map(logitsOf))).flat();
  expect(worst(actual.flat(), expected.flat())).toBeLessThan(1e-4);
}

/** Compares loss and gradients with the reference's, every token predicted, from an empty prefix. */
async function expectGradients(): Promise<void> {
  const ids = await reference.ints('input_ids');
  const sequences = ids.map(([first, ...rest]) => ({ prompt: [first], completion: rest }));
  const count = ids.length * (ids[0].length - 1);
  const nll = weightedNll(
    sequences,
    sequences.map(({ completion }) => completion.map(() => 1 / count)),
  );
  const { loss, gradients } = await accumulateGradients(model, [nll]);
  const logProbs = (await reference.floats('token_logprobs')).flat();
  const mean = logProbs.reduce((sum, x) => sum + x, 0) / count;
  expect((await loss.data())[0]).toBeCloseTo(-mean, 5);
  expect(Object.keys(gradients)).toEqual(Object.keys(model.params));
  expect(await worstGradient(gradients, (name) => reference.read(`grad.${name}`))).toBeLessThan(1e-3);
  tf.dispose([loss, gradients]);
}

const folderOf = (name: string) => `${elsewhere.includes(name) ? `${shared}/oracles/hf` : fixtures}/${name}`;
const available = [...random, ...(oracles ? [] : elsewhere)];

describe.each(available)('%s, as transformers computes it', (name) => {
  beforeEach(() => open(folderOf(name), `${folderOf(name)}/reference.safetensors`));
  afterEach(close);

  test('logits', expectLogits);

  test('a left-padded batch gives what its rows give without padding', async () => {
    const [ids, mask] = [await reference.ints('padded.input_ids'), await reference.ints('padded.attention_mask')];
    const [expected, scores] = [
      await reference.floats('padded.logits'),
      await reference.floats('padded.token_logprobs'),
    ];
    for (const [r, row] of ids.entries()) {
      const begin = mask[r].indexOf(1);
      const real = row.slice(begin);
      const actual = await logitsOf(real);
      expect(worst(actual.flat(), expected.slice(r * row.length + begin, (r + 1) * row.length).flat())).toBeLessThan(
        1e-4,
      );
      const { logProbs } = completionLogProbs(model, [{ prompt: real.slice(0, 1), completion: real.slice(1) }], 1);
      expect(worst(await logProbs.data(), scores[r].slice(begin))).toBeLessThan(1e-4);
    }
  });

  // The closest call of any step is 8.7e-4, well above what two implementations differ by.
  test('greedy decoding, alone and in a batch of prompts of unequal length', async () => {
    const [prompts, mask] = [await reference.ints('greedy.prompt_ids'), await reference.ints('greedy.attention_mask')];
    const outputs = await reference.ints('greedy.output_ids');
    const real = prompts.map((prompt, r) => prompt.slice(mask[r].indexOf(1)));
    const maxNewTokens = outputs[0].length - prompts[0].length;
    const batch = await generate(model, real, 1, { ...greedy, maxNewTokens });
    expect(batch.map(({ tokens }) => tokens)).toEqual(outputs.map((output) => output.slice(prompts[0].length)));
    const alone = await generate(model, real.slice(0, 1), 1, { ...greedy, maxNewTokens });
    expect(alone[0].tokens).toEqual((await reference.ints('greedy1.output_ids'))[0].slice(prompts[0].length));
  });
});

/** Checkpoints whose fixture has the gradients; the others' are in the oracles. */
const bundled = { grad: ['llama_gqa_tied', 'llama_mha_untied'], grad_masked: ['llama_gqa_tied'] };
describe.each(available)('gradient of every parameter, %s, as transformers computes it', (name) => {
  const source = (kind: keyof typeof bundled) =>
    bundled[kind].includes(name)
      ? { skipped: '', file: `${fixtures}/${name}/reference.safetensors` }
      : { skipped: oracles, file: `${shared}/oracles/hf/${name}/reference.safetensors` };
  afterEach(close);

  const { grad, grad_masked } = { grad: source('grad'), grad_masked: source('grad_masked') };
  describe.skipIf(grad.skipped)(`mean over all tokens${grad.skipped}`, () => {
    test.each([false, true])('from an empty prefix, gradient checkpointing: %s', async (gradientCheckpointing) => {
      await open(folderOf(name), grad.file);
      model = { ...model, gradientCheckpointing };
      await expectGradients();
    });
  });

  describe.skipIf(grad_masked.skipped)(`mean over each completion, then over completions${grad_masked.skipped}`, () => {
    test.each([false, true])(
      'of unequal length, behind their prompts, checkpointing: %s',
      async (gradientCheckpointing) => {
        await open(folderOf(name), grad_masked.file);
        model = { ...model, gradientCheckpointing };
        const [ids, mask] = [await reference.ints('input_ids'), await reference.floats('mask')];
        const sequences = ids.map((row, r) => {
          const begin = mask[r].indexOf(1) + 1; // mask t is that of token t + 1
          return { prompt: row.slice(0, begin), completion: row.slice(begin) };
        });
        const nll = weightedNll(
          sequences,
          sequences.map(({ completion }) => completion.map(() => 1 / completion.length / sequences.length)),
        );
        const { loss, gradients } = await accumulateGradients(model, [nll]);
        expect(worst(await loss.data(), await reference.read('masked_loss'))).toBeLessThan(1e-5);
        expect(await worstGradient(gradients, (name) => reference.read(`grad_masked.${name}`))).toBeLessThan(1e-3);
        tf.dispose([loss, gradients]);
      },
    );
  });
});

describe.skipIf(weights)(`pretrained models${weights}`, () => {
  describe.each(pretrained)('%s, as transformers computes it', (name) => {
    const folder = `${shared}/weights/${name}`;
    beforeEach(() => open(folder, `${folder}/${name}.reference.safetensors`));
    afterEach(close);

    test('logits', expectLogits);
    test('gradient of every parameter', expectGradients);

    test('greedy stories', async () => {
      type Story = { prompt: string; prompt_ids: number[]; output_ids: number[]; text: string };
      const { greedy: stories } = JSON.parse(await readFile(`${folder}/${name}.reference.json`, 'utf8')) as {
        greedy: Story[];
      };
      const tokenizer = await loadTokenizer(folder);
      const prompts = stories.map(({ prompt }) => tokenizer.encode(prompt));
      expect(prompts).toEqual(stories.map((story) => story.prompt_ids));
      const maxNewTokens = stories[0].output_ids.length - stories[0].prompt_ids.length;
      const completions = await generate(model, prompts, 1, { ...greedy, maxNewTokens });
      const outputs = completions.map(({ tokens }, i) => [...prompts[i], ...tokens]);
      expect(outputs).toEqual(stories.map((story) => story.output_ids));
      const texts = outputs.map((ids) => tokenizer.decode(ids, { skipSpecialTokens: true }));
      expect(texts).toEqual(stories.map((story) => story.text));
    });
  });
});
