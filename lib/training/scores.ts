/** What a reward model finds of answers. */
import * as tf from '@tensorflow/tfjs';
import type { ChatMessage } from '../checkpoint/chat_template.ts';
import type { Tokenizer } from '../checkpoint/tokenizer.ts';
import { scores } from '../model/llama.ts';
import type { Model } from '../model/model.ts';
import { readInMicroBatches, type Sequence } from './log_probs.ts';

/**
 * A question and its answer as a reward model reads them, through its own chat template: whatever the policy is, and
 * however it spells, the two have the text in common.
 * @param prompt - a conversation up to the answer; or a text, which the answer continues as it is
 */
export function judgedSequence(tokenizer: Tokenizer, prompt: string | ChatMessage[], answer: string): Sequence {
  const isText = typeof prompt === 'string';
  const before = isText ? tokenizer.encode(prompt) : tokenizer.chat(prompt, { addGenerationPrompt: true });
  const whole = isText
    ? tokenizer.encode(prompt + answer)
    : tokenizer.chat([...prompt, { role: 'assistant', content: answer }], { addGenerationPrompt: false });
  // What all answers begin with is run once. A template may write a question differently once it is answered.
  const isShared = before.length < whole.length && before.every((token, i) => token === whole[i]);
  return isShared ? { prompt: before, completion: whole.slice(before.length) } : { prompt: [], completion: whole };
}

/**
 * Scores of sequences, without a gradient: at the last token of each.
 * @param model - one with a score on top
 * @param options.microBatchTokens - as for `microBatches`
 * @returns one number a sequence
 */
export async function scoresOf(
  model: Model,
  sequences: Sequence[],
  { microBatchTokens }: { microBatchTokens: number },
): Promise<number[]> {
  return readInMicroBatches(sequences, microBatchTokens, (batch) => {
    const values = tf.tidy(() => scores(model, batch));
    return values.data().finally(() => values.dispose());
  });
}
