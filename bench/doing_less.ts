/**
 * What each thing that is not computed saves: every part is timed as it is, and with the saving undone.
 *
 *   npm run bench:doing-less -- models/tiny
 *
 * Takes the options of bench.ts. Completions have random lengths here, as real ones do.
 */
import * as tf from '@tensorflow/tfjs';
import {
  disposeModel,
  extend,
  generate,
  initBackend,
  lmHead,
  loadCheckpoint,
  microBatches,
  prefill,
  runMain,
  type Sequence,
  scoreCompletions,
  uniform,
} from '../lib/index.ts';
import { tokenLogProbs } from '../lib/model/ops.ts';
import { median, parseBench } from './bench.ts';

async function main(): Promise<void> {
  const { checkpoint, args } = parseBench();
  console.log(await initBackend(args.backend, args));
  const model = await loadCheckpoint(checkpoint);
  const { vocabSize } = model.config;
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
  /** The same rows, of which none shares its prompt. */
  const alone = sequences.map(({ prompt, completion }, row) => ({
    prompt: [row % vocabSize, row >> 8, ...prompt.slice(2)],
    completion,
  }));

  /** Samples completions of these lengths; rows that have ended leave, unless they are `kept` to the end. */
  const sample = (prompts: number[][], group: number, kept = false) =>
    generate(model, prompts, group, {
      ...{ temperature: 1, topK: 0, topP: 1, eosTokenIds: [], maxNewTokens: args.newTokens },
      random: (row, position) => uniform(1, row, position),
      react: (row, { tokens }) => (!kept && tokens.length === lengths[row] ? { finish: 'stop' } : undefined),
    });
  const score = (rows: Sequence[]) => {
    const scores = tf.tidy(() => scoreCompletions(model, rows, 1));
    tf.dispose([scores.logProbs, scores.entropies]);
  };
  const scoreAll = (batches: Sequence[][]) => batches.forEach(score);
  const gradient = (rows: Sequence[], withGradient: boolean) =>
    tf.tidy(() => {
      const loss = () => tf.sum(scoreCompletions(model, rows, 1).logProbs) as tf.Scalar;
      if (withGradient) tf.engine().gradients(loss, Object.values(model.params));
      else loss();
    });
  const inOrder = (rows: Sequence[]) => {
    const size = Math.max(1, Math.floor(args.microBatchTokens / args.newTokens));
    return Array.from({ length: Math.ceil(rows.length / size) }, (_, i) => rows.slice(i * size, (i + 1) * size));
  };
  const hidden = tf.tidy(() => {
    const rows = sequences.map(({ completion }, row) => ({ prompt: row, length: completion.length }));
    const prefix = prefill(
      model,
      sequences.map(({ prompt }) => prompt.slice(0, -1)),
    );
    return extend(model, prefix, undefined, { rows, tokens: sequences.flatMap(({ completion }) => completion) }).hidden;
  });
  const targets = Int32Array.from(sequences.flatMap(({ completion }) => completion));
  const logProbs = (times: number) => {
    for (let i = 0; i < times; i++) tokenLogProbs(hidden, lmHead(model), targets).dispose();
  };
  const shuffled = sequences.toSorted((a, b) => a.completion[0] - b.completion[0]);

  const rows: [saving: string, as: () => unknown, undone: () => unknown][] = [
    [
      'prompts are run once a group: sampling',
      () => sample(prompts, args.group),
      () =>
        sample(
          alone.map(({ prompt }) => prompt),
          1,
        ),
    ],
    ['the same: scoring', () => score(sequences), () => score(alone)],
    ['rows that have ended leave', () => sample(prompts, args.group), () => sample(prompts, args.group, true)],
    [
      'old log-probs are recorded (else: scoring)',
      () => {},
      () => scoreAll(microBatches(sequences, args.microBatchTokens)),
    ],
    [
      'micro-batches by prompt and length',
      () => scoreAll(microBatches(shuffled, args.microBatchTokens)),
      () => scoreAll(inOrder(shuffled)),
    ],
    ['no gradient in scoring', () => gradient(sequences, false), () => gradient(sequences, true)],
    ['log-probs and entropy in one pass', () => logProbs(1), () => logProbs(2)],
  ];
  console.log(`${'seconds, medians'.padEnd(44)}  as it is    undone     ratio`);
  for (const [saving, as, undone] of rows) {
    const seconds = { as: [] as number[], undone: [] as number[] };
    for (let i = 0; i <= args.repeats; i++) {
      for (const [name, run] of Object.entries({ as, undone })) {
        const began = performance.now();
        await run();
        if (i > 0) seconds[name as 'as' | 'undone'].push((performance.now() - began) / 1000);
      }
    }
    const [a, b] = [median(seconds.as), median(seconds.undone)];
    const ratio = a < 1e-4 ? '' : (b / a).toFixed(2);
    console.log(saving.padEnd(44), a.toFixed(3).padStart(9), b.toFixed(3).padStart(9), ratio.padStart(9));
  }
  hidden.dispose();
  disposeModel(model);
}

await runMain(import.meta.url, main);
