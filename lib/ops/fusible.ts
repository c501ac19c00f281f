/** How an operation gets a faster kernel, and a gradient of its own. */
import * as tf from '@tensorflow/tfjs';

type Definition<Inputs, Attributes extends object[], Outputs> = (inputs: Inputs, ...attributes: Attributes) => Outputs;

/** What kernels of this name take and give, on whatever backend they are registered. */
export type Kernel<Inputs extends tf.Tensor[], Attributes extends object[], Outputs extends tf.Tensor[]> = {
  readonly kernelName: string;
  /** The kernel of the current backend, if it has one. */
  find(): Definition<Inputs, Attributes, Outputs> | undefined;
};

/**
 * An operation defined in plain TensorFlow.js, which a backend that has registered a kernel of this name computes with that
 * instead. The types of the definition's inputs, attributes (none or one object) and outputs are those of the kernels, too.
 */
export function fusible<
  Inputs extends tf.Tensor[],
  Attributes extends object[],
  Outputs extends [tf.Tensor, ...tf.Tensor[]],
>(
  name: string,
  plain: Definition<Inputs, Attributes, Outputs>,
): Definition<Inputs, Attributes, Outputs> & Kernel<Inputs, Attributes, Outputs> {
  const kernel = kernelOf<Inputs, Attributes, Outputs>(name);
  return Object.assign((inputs: Inputs, ...attributes: Attributes) => {
    return (kernel.find() ?? plain)(inputs, ...attributes);
  }, kernel);
}

/** The kernels of this name: they get the inputs as '0', '1', … and the attributes. */
export const kernelOf = <Inputs extends tf.Tensor[], Attributes extends object[], Outputs extends tf.Tensor[]>(
  kernelName: string,
): Kernel<Inputs, Attributes, Outputs> => ({
  kernelName,
  find() {
    if (!tf.getKernel(kernelName, tf.getBackend())) return undefined;
    return (inputs, ...[attributes]) => {
      const named = inputs as unknown as tf.NamedTensorMap;
      const outputs: tf.Tensor | tf.Tensor[] = tf.engine().runKernel(kernelName, named, attributes as tf.NamedAttrMap);
      return (Array.isArray(outputs) ? outputs : [outputs]) as Outputs;
    };
  },
});

/**
 * A function with its gradient written out. The gradient may use only tensors that were `kept`: others are gone by then.
 * @param forward - the value; what its gradient needs; and the gradient of each input, from that of the value
 */
export function differentiable<
  Inputs extends tf.Tensor[],
  Value extends tf.Tensor,
  Kept extends [tf.Tensor, ...tf.Tensor[]],
>(
  forward: (inputs: Inputs) => {
    value: Value;
    kept: Kept;
    gradient: (dy: Value, kept: Kept) => { [i in keyof Inputs]: tf.Tensor };
  },
): (inputs: Inputs) => Value {
  const op = tf.customGrad<Value>((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    const { value, kept, gradient } = forward(args as tf.Tensor[] as Inputs);
    save(kept);
    return { value, gradFunc: gradient as (dy: Value, saved: tf.Tensor[]) => tf.Tensor[] };
  });
  // Where no gradient is recorded, nothing needs to be kept.
  return (inputs) => (tf.engine().state.gradientDepth > 0 ? op(...inputs) : tf.tidy(() => forward(inputs).value));
}
