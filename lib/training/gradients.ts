/** Gradients by parameter name, added up over micro-batches. */
import * as tf from '@tensorflow/tfjs';
import { type Model, type Params, trainable } from '../model/model.ts';
import { isMaximum } from '../statistics.ts';

/** Sums over the tokens of a micro-batch that are only logged, by name; or maxima, whose names end in `_max`. */
export type Statistics = Record<string, tf.Scalar>;

/**
 * The gradient of a sum of losses, one micro-batch in memory at a time.
 * @param losses - one function for each micro-batch: its share of the loss, shape (). What it returns is added, not
 *   averaged: divide by the count of the whole update, so that the split changes nothing. It may come with `statistics`
 * @returns the summed loss, shape (), and the gradient of what is trainable, by parameter name; a parameter without influence gets
 *   zeros, and so do all where there is no micro-batch. `statistics` are put together by name, in double precision.
 */
export async function accumulateGradients(
  model: Model,
  losses: ((model: Model) => tf.Scalar | { loss: tf.Scalar; statistics: Statistics })[],
): Promise<{ loss: tf.Scalar; gradients: Params; statistics: Record<string, number> }> {
  const statistics: Statistics[] = [];
  const [names, values] = [Object.keys(trainable(model)), Object.values(trainable(model))];
  let total: { loss: tf.Scalar; gradients: tf.Tensor[] } | undefined;
  for (const lossOf of losses) {
    const own = () => {
      const result = lossOf(model);
      if (result instanceof tf.Tensor) return result;
      for (const sum of Object.values(result.statistics)) tf.keep(sum);
      statistics.push(result.statistics);
      return result.loss;
    };
    const sum = tf.tidy(() => {
      // What `tf.valueAndGrads` calls; that one refuses parameters without influence.
      const { value, grads } = tf.engine().gradients(own, values);
      const gradients = grads.map((grad, i) => grad ?? tf.zerosLike(values[i]));
      if (!total) return { loss: value, gradients };
      const before = total.gradients;
      return {
        loss: tf.add(total.loss, value) as tf.Scalar,
        gradients: gradients.map((grad, i) => tf.add(before[i], grad)),
      };
    });
    tf.dispose(total);
    total = sum;
    await tf.nextFrame(); // wasm computes in one go: only now signals (Ctrl-C) and messages are heard
  }
  const { loss, gradients } = total ?? { loss: tf.scalar(0), gradients: values.map((value) => tf.zerosLike(value)) };
  return {
    loss,
    gradients: Object.fromEntries(names.map((name, i) => [name, gradients[i]])),
    statistics: await combine(statistics),
  };
}

/** Adds up statistics by name, in double precision, or takes their maximum, and disposes of them. */
async function combine(parts: Statistics[]): Promise<Record<string, number>> {
  const totals: Record<string, number> = {};
  for (const part of parts.filter((part) => Object.keys(part).length > 0)) {
    // Read together: each reading by itself may wait for the device.
    const stacked = tf.stack(Object.values(part));
    const values = await stacked.data();
    stacked.dispose();
    for (const [i, name] of Object.keys(part).entries()) {
      const before = totals[name] ?? 0;
      totals[name] = isMaximum(name) ? Math.max(before, values[i]) : before + values[i];
    }
  }
  tf.dispose(parts);
  return totals;
}
