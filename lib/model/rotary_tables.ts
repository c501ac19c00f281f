/** The angles by which rotary embeddings turn queries and keys. */
import * as tf from '@tensorflow/tfjs';
import type { LlamaConfig } from './config.ts';
import type { Row } from './layout.ts';
import { ropeInverseFrequencies } from './rope.ts';

/**
 * Cosines and sines of every packed token's angles, each of shape (N, 1, D/2).
 * @param starts - position of each row's first token
 */
export function rotaryTables(
  rows: Row[],
  starts: number[],
  config: LlamaConfig,
): { cos: tf.Tensor3D; sin: tf.Tensor3D } {
  const frequencies = ropeInverseFrequencies(config);
  const count = rows.reduce((sum, { length }) => sum + length, 0);
  const cos = new Float32Array(count * frequencies.length);
  const sin = new Float32Array(count * frequencies.length);
  const table = angleTable(config);
  let n = 0;
  rows.forEach(({ length }, r) => {
    for (let t = 0; t < length; t++, n++) {
      const position = table(starts[r] + t);
      cos.set(position.cos, n * frequencies.length);
      sin.set(position.sin, n * frequencies.length);
    }
  });
  const shape: [number, number, number] = [count, 1, frequencies.length];
  return { cos: tf.tensor3d(cos, shape), sin: tf.tensor3d(sin, shape) };
}

type Angles = { cos: Float32Array; sin: Float32Array };
const angleTables = new WeakMap<LlamaConfig, Angles[]>();

/** Cosines and sines by position, computed once for each position of a model. */
function angleTable(config: LlamaConfig): (position: number) => Angles {
  const table = angleTables.get(config) ?? [];
  angleTables.set(config, table);
  const frequencies = ropeInverseFrequencies(config);
  return (position) =>
    (table[position] ??= {
      cos: Float32Array.from(frequencies, (frequency) => Math.cos(position * frequency)),
      sin: Float32Array.from(frequencies, (frequency) => Math.sin(position * frequency)),
    });
}
