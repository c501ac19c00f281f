/** Gradients by parameter name, added up over micro-batches. */
import * as tf from '@tensorflow/tfjs';
import { type Model, type Params, trainable } from '../model/llama.ts';

/**
 * The gradient of a sum of losses, one micro-batch in memory at a time.
 * @param losses - one function for each micro-batch: its share of the loss, shape (). What it returns is added, not
 *   averaged: divide by the count of the whole step, so that the split changes nothing.
 * @returns the summed loss, shape (), and the gradient of what is trainable, by parameter name; a parameter without influence gets
 *   zeros, and so do all where there is no micro-batch
 */
export function accumulateGradients(
  model: Model,
  losses: ((model: Model) => tf.Scalar)[],
): { loss: tf.Scalar; gradients: Params } {
  const [names, values] = [Object.keys(trainable(model)), Object.values(trainable(model))];
  let total: { loss: tf.Scalar; gradients: tf.Tensor[] } | undefined;
  for (const loss of losses) {
    const sum = tf.tidy(() => {
      // What `tf.valueAndGrads` calls; that one refuses parameters without influence.
      const { value, grads } = tf.engine().gradients(() => loss(model), values);
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
  return { loss, gradients: Object.fromEntries(names.map((name, i) => [name, gradients[i]])) };
}
