/**
 * The process of its own in which the train.ts of an experiment is asked, because that loads TensorFlow.js. It first tells the
 * defaults of its options; then, of each group that it is sent, what the tokens weigh.
 */
import { pathToFileURL } from 'node:url';
import * as tf from '@tensorflow/tfjs';
import { sum } from '../lib/statistics.ts';
import { tokenWeights } from './token_weights.ts';

/** A completion: the log-prob of each of its tokens when it was sampled, null where the policy did not choose it. */
export type Weighable = { logProbs: (number | null)[]; advantage: number };
type Question = { id: number; rows: Weighable[]; options: object };
export type Answer = { defaults: object } | { id: number; weights: number[][] };

const { lossInputs, createCommand, ...experiment } = await import(pathToFileURL(process.argv[2]).href);
const [lossName] = Object.keys(experiment).filter((name) => name.endsWith('Loss'));

/** As if the group were the whole of an update, and without β's part: what the reference says is not recorded. */
function weigh(rows: Weighable[], options: object): Promise<number[][]> {
  const batch = rows.map(({ logProbs, advantage }) => ({
    completion: logProbs,
    oldLogProbs: logProbs.map((logProb) => logProb ?? 0),
    mask: logProbs.map((logProb) => Number(logProb !== null)),
    weights: logProbs.map(() => 1), // of importance, which are not known
    advantage,
  }));
  const counts = { completions: rows.length, tokens: sum(batch.map(({ mask }) => sum(mask))) };
  return tokenWeights(
    batch.map(({ oldLogProbs }) => oldLogProbs),
    (logProbs) => experiment[lossName](lossInputs(logProbs, batch), { ...options, ...counts }),
  );
}

await tf.setBackend('cpu');
const answer = (message: Answer) => void process.send!(message);
process.on('message', async ({ id, rows, options }: Question) => answer({ id, weights: await weigh(rows, options) }));
process.on('disconnect', () => process.exit());
answer({ defaults: createCommand().opts() });
