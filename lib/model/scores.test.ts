/** A model with a score on top, and a preference loss through it, against transformers and TRL. */
import { cpSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { preferenceLoss } from '../../experiment_reward_model/train_reward_model.ts';
import { useBackend } from '../../testing/backend.ts';
import { fixtures, worst, worstGradient } from '../../testing/gradients.ts';
import { loadCheckpoint, saveCheckpoint } from '../checkpoint/checkpoint.ts';
import { openSafetensors } from '../checkpoint/safetensors.ts';
import { accumulateGradients } from '../training/gradients.ts';
import { readConfig } from './config.ts';
import { scores } from './llama.ts';
import type { Model } from './model.ts';

const ORACLE = '../shared/oracles/hf/llama_reward';
const absent = existsSync(ORACLE) ? '' : ` (skipped: there is no ${ORACLE})`;
const temp = mkdtempSync(join(tmpdir(), 'scores-'));
afterAll(() => rmSync(temp, { recursive: true }));

describe.skipIf(absent !== '')(`a reward model, as transformers computes it${absent}`, () => {
  type Reference = { sequences: number[][]; scores: number[]; loss: number; centering: number };
  let model: Model;
  let reference: Reference;
  beforeAll(async () => {
    await useBackend();
    model = await loadCheckpoint(ORACLE, { head: 'score' });
    reference = JSON.parse(readFileSync(join(ORACLE, 'reference.json'), 'utf8'));
  });

  const scoresOf = (sequences: { prompt: number[]; completion: number[] }[]) =>
    tf.tidy(() => [...scores(model, sequences).dataSync()]);
  const whole = () => reference.sequences.map((completion) => ({ prompt: [], completion }));

  it('scores texts of unequal lengths, together and one at a time', () => {
    expect(worst(scoresOf(whole()), reference.scores)).toBeLessThan(1e-4);
    expect(
      worst(
        whole().flatMap((text) => scoresOf([text])),
        reference.scores,
      ),
    ).toBeLessThan(1e-4);
  });

  it('scores a prompt and its completions, which share it, as the whole texts', () => {
    const [text] = reference.sequences;
    const ends = [[5], [9, 3, 200], [77, 1]];
    const apart = scoresOf(ends.map((completion) => ({ prompt: text, completion })));
    const joined = scoresOf(ends.map((completion) => ({ prompt: [], completion: [...text, ...completion] })));
    expect(worst(apart, joined)).toBeLessThan(1e-5);
  });

  it('has the loss of Bradley and Terry with its gradient', async () => {
    const { loss, gradients } = await accumulateGradients(model, [
      (current) => {
        const pairs = tf.reshape(scores(current, whole()), [-1, 2]) as tf.Tensor2D; // chosen, rejected
        return preferenceLoss(pairs, { centering: 0.01, pairs: pairs.shape[0] });
      },
    ]);
    expect((await loss.data())[0]).toBeCloseTo(reference.loss + reference.centering, 5);
    const expected = await openSafetensors(join(ORACLE, 'reference.safetensors'));
    expect(await worstGradient(gradients, (name) => expected.read(`grad.${name}`))).toBeLessThan(1e-3);
    await expected.close();
    tf.dispose([loss, gradients]);
  });

  it('is written as it was read', async () => {
    const folder = join(temp, 'saved');
    await saveCheckpoint(folder, { source: ORACLE, params: model.params });
    for (const file of ['config.json', 'model.safetensors']) {
      expect(readFileSync(join(folder, file)).equals(readFileSync(join(ORACLE, file))), file).toBe(true);
    }
  });

  it('is no policy, and a policy is no reward model', async () => {
    await expect(loadCheckpoint(ORACLE)).rejects.toThrow(
      /"LlamaForSequenceClassification".* is not supported; supported are LlamaForCausalLM, /,
    );
    await expect(loadCheckpoint(`${fixtures}/llama_gqa_tied`, { head: 'score' })).rejects.toThrow(
      /"LlamaForCausalLM".* is not supported; supported are LlamaForSequenceClassification, /,
    );
  });

  it('has one score, or is refused', async () => {
    const folder = join(temp, 'two');
    cpSync(ORACLE, folder, { recursive: true });
    const config = JSON.parse(readFileSync(join(ORACLE, 'config.json'), 'utf8'));
    rmSync(join(folder, 'config.json'), { force: true });
    writeFileSync(join(folder, 'config.json'), JSON.stringify({ ...config, id2label: { 0: 'no', 1: 'yes' } }));
    await expect(readConfig(folder, { head: 'score' })).rejects.toThrow(
      /a score of 2 numbers \("id2label"\), and not of one/,
    );
  });
});
