import * as tf from '@tensorflow/tfjs';

/**
 * f(inputs), of which nothing is kept but the inputs: its gradient runs f a second time (Chen et al. 2016, "Training Deep
 * Nets with Sublinear Memory Cost").
 * @param f - uses no tensor but those that it is given, those that it creates, and those that outlive the gradient
 * @param inputs - of type float32
 */
export function recomputed(f: (inputs: tf.Tensor[]) => tf.Tensor[], inputs: tf.Tensor[]): tf.Tensor[] {
  let shapes: number[][] = [];
  // A custom gradient can have one output only.
  const packed = (inputs: tf.Tensor[]): tf.Tensor1D => {
    const outputs = f(inputs);
    shapes = outputs.map(({ shape }) => shape);
    return tf.concat1d(outputs.map((output) => tf.reshape(output, [-1]) as tf.Tensor1D));
  };
  const op = tf.customGrad((...args) => {
    const save = args.pop() as unknown as tf.GradSaveFunc;
    save(args as tf.Tensor[]);
    const gradFunc = (dy: tf.Tensor, saved: tf.Tensor[]) => {
      // The engine has one tape at a time: the one that is being read is put aside.
      const { state } = tf.engine();
      const tape = state.activeTape;
      try {
        const { grads } = tf.engine().gradients(() => packed(saved), saved, dy as never, true);
        return grads.map((grad, i) => grad ?? tf.zerosLike(saved[i]));
      } finally {
        state.activeTape = tape;
      }
    };
    return { value: packed(args as tf.Tensor[]), gradFunc };
  });
  const all = op(...inputs) as tf.Tensor1D;
  let begin = 0;
  return shapes.map((shape) => {
    const size = tf.util.sizeFromShape(shape);
    begin += size;
    return tf.reshape(tf.slice1d(all, begin - size, size), shape);
  });
}
