/** Gradients by parameter name, added up over micro-batches. */
import * as tf from '@tensorflow/tfjs';
import { type Model, type Params, trainable } from '../model/llama.ts';

/**
 * The gradient of a sum of losses, one micro-batch in memory at a time.
 * @param losses - one function for each micro-batch: its share of the loss, shape (). What it returns is added, not
 *   averaged: divide by the count of the whole step, so that the split changes nothing. It may come with `sums`: more to
 *   be added up, without a gradient.
 * @returns the summed loss, shape (), and the gradient of what is trainable, by parameter name; a parameter without influence gets
 *   zeros, and so do all where there is no micro-batch. `sums` of each micro-batch: see {@link sumUp}
 */
export function accumulateGradients(
  model: Model,
  losses: ((model: Model) => tf.Scalar | { loss: tf.Scalar; sums: tf.Tensor1D })[],
): { loss: tf.Scalar; gradients: Params; sums: tf.Tensor1D[] } {
  const sums: tf.Tensor1D[] = [];
  const [names, values] = [Object.keys(trainable(model)), Object.values(trainable(model))];
  let total: { loss: tf.Scalar; gradients: tf.Tensor[] } | undefined;
  for (const lossOf of losses) {
    const own = () => {
      const result = lossOf(model);
      if (result instanceof tf.Tensor) return result;
      sums.push(tf.keep(result.sums));
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
  }
  const { loss, gradients } = total ?? { loss: tf.scalar(0), gradients: values.map((value) => tf.zerosLike(value)) };
  return { loss, gradients: Object.fromEntries(names.map((name, i) => [name, gradients[i]])), sums };
}

/**
 * Adds up the `sums` of all micro-batches, in double precision, and disposes of them.
 * @param count - how many numbers each has; as many zeros where there is no micro-batch
 */
export async function sumUp(sums: tf.Tensor1D[], count: number): Promise<number[]> {
  const values = await Promise.all(sums.map((part) => part.data()));
  tf.dispose(sums);
  return Array.from({ length: count }, (_, i) => values.reduce((sum, part) => sum + part[i], 0));
}
