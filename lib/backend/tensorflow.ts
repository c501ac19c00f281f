/** Native TensorFlow, through tfjs-node-gpu or tfjs-node. */
import util from 'node:util';
import * as tf from '@tensorflow/tfjs';

/** The package that was loaded, or why none was. */
export async function loadTensorFlow(): Promise<{ loaded?: string; reason?: string }> {
  // tfjs-node calls this function of Node, which Node 23 removed.
  (util as Record<string, unknown>).isNullOrUndefined ??= (value: unknown) => value === null || value === undefined;
  const reasons: string[] = [];
  for (const name of ['@tensorflow/tfjs-node-gpu', '@tensorflow/tfjs-node']) {
    try {
      await import(name);
      await tf.setBackend('tensorflow');
      return { loaded: name };
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      if (code !== 'ERR_MODULE_NOT_FOUND') reasons.push(`${name}: ${String(message).trim().split('\n')[0]}`);
    }
  }
  return { reason: reasons.join('; ') || 'not installed' };
}
