/**
 * What each thing that is not computed saves: every part is timed as it is, and with the saving undone.
 *
 *   npm run bench:doing-less -- models/tiny
 *
 * Takes the options of bench.ts. Completions have random lengths here, as real ones do.
 */
import * as tf from '@tensorflow/tfjs';
import { initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { runMain } from '../lib/cli/main.ts';
import { generate } from '../lib/generation/generate.ts';
import { extend, lmHead, prefill } from '../lib/model/llama.ts';
import type { Model } from '../lib/model/model.ts';
import { tokenLogProbs } from '../lib/ops/token_log_probs/token_log_probs.ts';
import { uniform } from '../lib/random.ts';
import { completionLogProbs, microBatches, type Sequence } from '../lib/training/log_probs.ts';
import { median, parseBench } from './bench.ts';

type Args = ReturnType<typeof parseBench>['args'];
type Drawn = ReturnType<typeof drawSequences>;
type Saving = { name: string; as: () => unknown; undone: () => unknown };

/** Random prompts, and completions of random lengths. */
function drawSequences(vocabSize: number, args: Args) {
  const tokens = (count: number, ...key: number[]) =>
    Array.from({ length: count }, (_, t) => Math.floor(3 + uniform(0, ...key, t) * (vocabSize - 3)));
  const prompts = Array.from({ length: args.prompts }, (_, p) => tokens(args.promptLen, 0, p));
  const lengths = prompts.flatMap((_, p) =>
    Array.from({ length: args.group }, (_, g) => 1 + Math.floor(args.newTokens * uniform(0, 1, p, g))),
  );
  const sequences: Sequence[] = lengths.map((length, row) => ({
    prompt: prompts[Math.floor(row / args.group)],
    completion: tokens(length, 2, row),
  }));
  return { prompts, lengths, sequences };
}

/** What is not computed while sampling. */
function savingsOfSampling(model: Model, { prompts, lengths, sequences }: Drawn, args: Args): Saving[] {
  /** Samples completions of these lengths; rows that have ended leave, unless they are `kept` to the end. */
  const sample = (prompts: number[][], group: number, kept = false) =>
    generate(model, prompts, group, {
      ...{ temperature: 1, topK: 0, topP: 1, eosTokenIds: [], maxNewTokens: args.newTokens },
      random: (row, position) => uniform(1, row, position),
      react: (row, { tokens }) => (!kept && tokens.length === lengths[row] ? { finish: 'stop' } : undefined),
    });
  const alone = unshared(sequences, model).map(({ prompt }) => prompt);
  const as = () => sample(prompts, args.group);
  return [
    { name: 'prompts are run once a group: sampling', as, undone: () => sample(alone, 1) },
    { name: 'rows that have ended leave', as, undone: () => sample(prompts, args.group, true) },
  ];
}

/** The same rows, of which none shares its prompt. */
const unshared = (sequences: Sequence[], { config }: Model): Sequence[] =>
  sequences.map(({ prompt, completion }, row) => ({
    prompt: [row % config.vocabSize, row >> 8, ...prompt.slice(2)],
    completion,
  }));

/** What is not computed of given completions. */
function savingsOfLogProbs(model: Model, { sequences }: Drawn, args: Args): Saving[] {
  const compute = (batch: Sequence[]) => {
    const { logProbs, entropies } = tf.tidy(() => completionLogProbs(model, batch, 1));
    tf.dispose([logProbs, entropies]);
  };
  const gradient = () =>
    tf.tidy(() => {
      const loss = () => tf.sum(completionLogProbs(model, sequences, 1).logProbs) as tf.Scalar;
      tf.engine().gradients(loss, Object.values(model.params));
    });
  const alone = unshared(sequences, model);
  const shuffled = sequences.toSorted((a, b) => a.completion[0] - b.completion[0]);
  const inOrder = (rows: Sequence[]) => {
    const size = Math.max(1, Math.floor(args.microBatchTokens / args.newTokens));
    return Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => rows.slice(i * size, (i + 1) * size));
  };
  const all = () => microBatches(sequences, args.microBatchTokens).forEach(compute);
  const sorted = () => microBatches(shuffled, args.microBatchTokens).forEach(compute);
  return [
    { name: 'prompts are run once a group: log-probs', as: () => compute(sequences), undone: () => compute(alone) },
    { name: 'old log-probs are recorded (else: computed)', as: () => {}, undone: all },
    { name: 'micro-batches by prompt and length', as: sorted, undone: () => inOrder(shuffled).forEach(compute) },
    { name: 'log-probs without a gradient', as: () => compute(sequences), undone: gradient },
    savingOfEntropy(model, sequences),
  ];
}

function savingOfEntropy(model: Model, sequences: Sequence[]): Saving {
  const rows = sequences.map(({ completion }, row) => ({ prompt: row, length: completion.length }));
  const tokens = sequences.flatMap(({ completion }) => completion);
  const inputs = sequences.map(({ prompt }) => prompt.slice(0, -1));
  const hidden = tf.tidy(() => extend(model, prefill(model, inputs), undefined, { rows, tokens }).hidden);
  const logProbs = () => tokenLogProbs(hidden, lmHead(model), Int32Array.from(tokens)).dispose();
  const undone = () => [logProbs(), logProbs()];
  return { name: 'log-probs and entropy in one pass', as: logProbs, undone };
}

async function main(): Promise<void> {
  const { checkpoint, args } = parseBench(
    'bench:doing-less',
    'What each thing that is not computed saves: every part is timed as it is, and with the saving undone.',
  );
  console.log(await initBackend(args.backend, args));
  const model = await loadCheckpoint(checkpoint);
  console.log(`${'seconds, medians'.padEnd(44)}  as it is    undone     ratio`);
  const drawn = drawSequences(model.config.vocabSize, args);
  for (const { name, ...ways } of [
    ...savingsOfSampling(model, drawn, args),
    ...savingsOfLogProbs(model, drawn, args),
  ]) {
    const seconds = { as: [] as number[], undone: [] as number[] };
    for (let i = 0; i <= args.repeats; i++) {
      for (const way of ['as', 'undone'] as const) {
        const began = performance.now();
        await ways[way]();
        if (i > 0) seconds[way].push((performance.now() - began) / 1000);
      }
    }
    const [a, b] = [median(seconds.as), median(seconds.undone)];
    const ratio = a < 1e-4 ? '' : (b / a).toFixed(2);
    console.log(name.padEnd(44), a.toFixed(3).padStart(9), b.toFixed(3).padStart(9), ratio.padStart(9));
  }
}

await runMain(import.meta.url, main);
