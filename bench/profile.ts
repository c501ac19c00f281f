/**
 * Where the time of one GRPO step goes: a table of kernels, the costliest first, for each part of the step.
 *
 *   npm run bench:profile -- models/tiny
 *
 * Takes the options of bench.ts. What is left beside the kernels is JavaScript: TensorFlow.js itself, and this project's code.
 */
import * as tf from '@tensorflow/tfjs';
import { initBackend } from '../lib/backend/index.ts';
import { runMain } from '../lib/cli/main.ts';
import { createStep, PARTS, parseBench } from './bench.ts';

type Cost = { calls: number; ms: number };

/** Adds up the time of every kernel of the current backend from now on; nested calls count in the outer kernel only. */
function timeKernels(): Map<string, Cost> {
  const costs = new Map<string, Cost>();
  let depth = 0;
  for (const { kernelName, backendName, kernelFunc } of tf.getKernelsForBackend(tf.getBackend())) {
    tf.unregisterKernel(kernelName, backendName);
    const timed: tf.KernelFunc = (args) => {
      const began = performance.now();
      depth++;
      try {
        return kernelFunc(args);
      } finally {
        depth--;
        if (depth === 0) {
          const cost = costs.get(kernelName) ?? { calls: 0, ms: 0 };
          costs.set(kernelName, { calls: cost.calls + 1, ms: cost.ms + performance.now() - began });
        }
      }
    };
    tf.registerKernel({ kernelName, backendName, kernelFunc: timed });
  }
  return costs;
}

async function main(): Promise<void> {
  const { checkpoint, args } = parseBench(
    'bench:profile',
    'Where the time of one step goes: a table of kernels, the costliest first.',
  );
  console.log(await initBackend(args.backend, args));
  const costs = timeKernels();
  const parts: Record<string, Map<string, Cost>> = {};
  let measured = false;
  const step = await createStep(checkpoint, args, (part) => {
    if (measured) parts[part] = new Map(costs);
    costs.clear();
  });
  await step();
  measured = true;
  const times = await step();
  for (const part of PARTS.slice(0, 3)) {
    const rows = [...parts[part]].sort(([, a], [, b]) => b.ms - a.ms);
    const kernels = rows.reduce((sum, [, { ms }]) => sum + ms, 0);
    console.log(
      `\n${part} ${(1000 * times[part]).toFixed(0)} ms, of which not in kernels ${(1000 * times[part] - kernels).toFixed(0)}`,
    );
    for (const [name, { calls, ms }] of rows.slice(0, 16)) {
      console.log(`  ${name.padEnd(24)} ${ms.toFixed(1).padStart(8)} ms ${String(calls).padStart(6)} calls`);
    }
  }
}

await runMain(import.meta.url, main);
