import * as tf from '@tensorflow/tfjs';
import { beforeAll, test } from 'vitest';
import { useBackend } from '../../../testing/backend.ts';
import { cases, expectSame, plainly, random, size, WITH_KERNELS } from '../comparisons.ts';
import { adamWUpdate } from './adamw.ts';

beforeAll(useBackend);

// What the update is to be, lib/training/adamw.test.ts says.
test.skipIf(!WITH_KERNELS)('kernel and plain definition agree', async () => {
  for (const key of cases) {
    const shape = [[size(1, key)], [size(1, key), size(2, key)], [], [0, 3]][key % 4];
    const [param, gradient, m, v] = [random(shape), random(shape), random(shape), tf.square(random(shape))];
    const [beta1, beta2, epsilon] = [0.9, 0.999, 1e-8];
    // Of clones, which share their memory: a kernel that writes over it is to see that.
    const update = () =>
      adamWUpdate([tf.clone(param), gradient, tf.clone(m), tf.clone(v)], {
        ...{ beta1, beta2, epsilon, gradientScale: key % 2 ? 1 : 0.3 },
        decay: key % 3 ? 0.99 : 1,
        stepSize: 0.1 / (1 - beta1 ** (key + 1)),
        rootOfCorrection: Math.sqrt(1 - beta2 ** (key + 1)),
      });
    await expectSame(update(), plainly(update));
  }
});
