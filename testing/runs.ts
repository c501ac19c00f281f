/** For tests: runs that are started, saved and resumed as a script does it, but trained with random gradients. */
import * as tf from '@tensorflow/tfjs';
import { createCommand } from '../experiment_base/train.ts';
import { parseRunOptions } from '../lib/cli/command.ts';
import { loadProblems } from '../lib/environments/dataset.ts';
import { hashJson } from '../lib/hashes.ts';
import { disposeModel, trainable } from '../lib/model/model.ts';
import { normals } from '../lib/random.ts';
import { startRun } from '../lib/run/start.ts';
import { saveTrainingState } from '../lib/run/training_state.ts';
import { optimizerStep } from '../lib/training/optimizer_step.ts';
import type { TrainingState } from '../lib/training/state.ts';

/** Steps of a run; every second one ends with a checkpoint. */
export const STEPS = 6;

/** What a script does up to its first step. */
export async function start(line: string[], command = createCommand()) {
  const options = parseRunOptions(command, ['node', 'train.ts', '--backend', 'cpu', ...line]);
  const task = { train: loadProblems(options.dataset), test: [], buildPrompt: () => [1], shown: {}, reference: false };
  return { options, ...(await startRun(options, { experiment: command.name(), ...task })) };
}

/** Takes the steps of a run. @returns the state at each checkpoint, as {@link fingerprint} */
export async function train(line: string[], command = createCommand()): Promise<Map<number, string>> {
  const { run, state, source, options } = await start(line, command);
  const { folder } = run;
  const states = new Map<number, string>();
  for (let step = folder.step + 1; step <= STEPS; step++) {
    const gradients = Object.entries(trainable(state.model)).map(([name, { shape, size }], i) => {
      return [name, tf.tensor(normals(size, options.seed, step, i), shape)] as const;
    });
    await optimizerStep(state, { loss: tf.scalar(1), gradients: Object.fromEntries(gradients) }, options);
    state.counters.tokens += 100;
    folder.log({ step, reward: step });
    if (step % 2 === 1) continue;
    states.set(step, await fingerprint(state));
    await folder.saveCheckpoint(step, (dir) =>
      saveTrainingState({ ...folder, folder: dir, step }, state, source.folder),
    );
  }
  dispose(state);
  return states;
}

/** A hash of all that a state holds, to the last bit. */
export async function fingerprint({ model, optimizer, counters }: TrainingState): Promise<string> {
  const values: unknown[] = [optimizer.step, counters];
  for (const params of [trainable(model), optimizer.m, optimizer.v]) {
    for (const [name, param] of Object.entries(params)) values.push(name, [...(await param.data())].map(String));
  }
  return hashJson(values);
}

export function dispose({ model, optimizer }: TrainingState): void {
  disposeModel(model);
  tf.dispose([optimizer.m, optimizer.v]);
}
