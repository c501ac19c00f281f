/** How an operation gets a faster kernel, and a gradient of its own. */
import * as tf from '@tensorflow/tfjs';

type Definition<Attributes> = (inputs: tf.Tensor[], attributes: Attributes) => tf.Tensor[];

/**
 * An operation defined in plain TensorFlow.js, which a backend that has registered a kernel of this name computes with that
 * instead: it gets the inputs as '0', '1', … and the attributes, and puts out the same tensors.
 */
export function fusible<Attributes extends object = object>(
  name: string,
  plain: Definition<Attributes>,
): Definition<Attributes> {
  const kernel = kernelOf<Attributes>(name);
  return (inputs, attributes) => (kernel() ?? plain)(inputs, attributes);
}

/** The kernel that the current backend has registered under this name, if it has. */
export const kernelOf =
  <Attributes extends object>(name: string) =>
  (): Definition<Attributes> | undefined => {
    if (!tf.getKernel(name, tf.getBackend())) return undefined;
    return (inputs, attributes) => {
      const named = Object.fromEntries(inputs.entries()) as unknown as tf.NamedTensorMap;
      const outputs: tf.Tensor | tf.Tensor[] = tf.engine().runKernel(name, named, attributes as tf.NamedAttrMap);
      return Array.isArray(outputs) ? outputs : [outputs];
    };
  };

/**
 * A function with its gradient written out. The gradient may use only tensors that were `kept`: others are gone by then.
 * @param forward - the value; what its gradient needs; and the gradient of each input, from that of the value
 */
export function differentiable(
  forward: (inputs: tf.Tensor[]) => {
    value: tf.Tensor;
    kept: tf.Tensor[];
    gradient: (dy: tf.Tensor, kept: tf.Tensor[]) => tf.Tensor[];
  },
): (inputs: tf.Tensor[]) => tf.Tensor {
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    const { value, kept, gradient } = forward(args as tf.Tensor[]);
    save(kept);
    return { value, gradFunc: gradient };
  });
  // Where no gradient is recorded, nothing needs to be kept.
  return (inputs) => (tf.engine().state.gradientDepth > 0 ? op(...inputs) : tf.tidy(() => forward(inputs).value));
}
