/** In place of `@tensorflow/tfjs`: without its layers, data sets, converter, and the backends that are not used. */
import '@tensorflow/tfjs-core/dist/register_all_gradients.js';
import '@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops.js';

export * from '@tensorflow/tfjs-core';
