/**
 * Times adding up numbers over ranks: what each update of experiment_ddp spends on top of its own work, by the number of
 * parameters. (Copying gradients out of tensors and back comes on top.) The largest takes 2 GB in each rank.
 *
 *   npm run bench:all-reduce -- --nproc 2
 *   mpirun -np 2 node --import tsx bench/all_reduce.ts
 */
import { Command } from '@commander-js/extra-typings';
import { examples, integer, parseOptions } from '../lib/cli/options.ts';
import { runRanks } from '../lib/cli/ranks.ts';
import { median } from './bench.ts';

export const command = new Command('all_reduce')
  .description('Times adding up numbers over ranks.')
  .addHelpText('after', examples('npm run bench:all-reduce -- --nproc 2'))
  .option('--nproc <n>', 'local ranks (below mpirun or srun: as many as these start)', integer({ min: 1 }), 2)
  .option('--repeats <n>', 'times to measure, after one that is not', integer({ min: 1 }), 5)
  .option('--bucket <n>', 'numbers that are sent at once', integer({ min: 1 }), 2 ** 22);

/** Parameters of models/tiny, a model of 10 million, SmolLM2-135M, and Qwen2.5-0.5B. */
const SIZES = { 'models/tiny': 0.8e6, '10M': 10e6, '135M': 135e6, '0.5B': 494e6 };

await runRanks(
  import.meta.url,
  async ({ rank, size, allReduceSum, barrier }) => {
    const { repeats, bucket } = parseOptions(command);
    if (rank === 0)
      console.log(`${size} ranks\n| gradient | MB | seconds, median (lowest to highest) | MB/s |\n|---|---|---|---|`);
    for (const [name, numbers] of Object.entries(SIZES)) {
      const values = new Float32Array(numbers);
      const seconds: number[] = [];
      for (let repeat = 0; repeat <= repeats; repeat++) {
        await barrier();
        const began = performance.now();
        for (let begin = 0; begin < numbers; begin += bucket)
          await allReduceSum(values.subarray(begin, begin + bucket));
        seconds.push((performance.now() - began) / 1000);
      }
      const timed = seconds.slice(1);
      const middle = median(timed);
      const [shown, low, high] = [middle, Math.min(...timed), Math.max(...timed)].map((s) => s.toPrecision(2));
      const megabytes = (4 * numbers) / 1e6;
      if (rank === 0)
        console.log(`| ${name} | ${megabytes} | ${shown} (${low} to ${high}) | ${(megabytes / middle).toFixed(0)} |`);
    }
  },
  () => parseOptions(command).nproc,
);
