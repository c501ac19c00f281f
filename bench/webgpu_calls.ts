/**
 * What JavaScript has to do for a GPU, without one: commands, bind groups and milliseconds of a token position while sampling,
 * and of the parts of a training step. It runs on a device of Dawn's that takes all commands and computes nothing; with
 * `--gpu`, on that GPU, and then prints how long it took, too.
 *
 *   npm run bench:calls -- models/tiny
 *   npm run bench:calls -- models/tiny --kernels off
 *   npm run bench:calls -- models/tiny --gpu 0
 *
 * Takes the options of bench.ts.
 */
import * as tf from '@tensorflow/tfjs';
import { loadWebGpu, startWebGpu } from '../lib/backend/webgpu.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { runMain } from '../lib/cli/main.ts';
import { generate } from '../lib/generation/generate.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { createStep, median, PARTS, parseBench } from './bench.ts';

type Counts = { dispatches: number; bindGroups: number; buffers: number; submits: number };
const NAMES = ['dispatches', 'bindGroups', 'buffers', 'submits'] as const;

/** Counts what goes through the device from now on; of one that computes nothing, zeros are read. */
function countCommands({ computes }: { computes: boolean }): Counts {
  const counts: Counts = { dispatches: 0, bindGroups: 0, buffers: 0, submits: 0 };
  type Function = (...args: unknown[]) => unknown;
  const count = (object: object, name: string, what: keyof Counts) => {
    const methods = object as Record<string, Function>;
    const method = methods[name];
    methods[name] = function (this: unknown, ...args) {
      counts[what]++;
      return method.apply(this, args);
    };
  };
  const backend = tf.backend();
  const { device } = backend as unknown as { device: { queue: object; createCommandEncoder(): Encoder } };
  type Encoder = { beginComputePass(): { end(): void }; finish(): object };
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  count(Object.getPrototypeOf(pass), 'dispatchWorkgroups', 'dispatches');
  count(Object.getPrototypeOf(device), 'createBindGroup', 'bindGroups');
  count(Object.getPrototypeOf(device), 'createBuffer', 'buffers');
  count(Object.getPrototypeOf(device.queue), 'submit', 'submits');
  pass.end();
  encoder.finish();
  if (computes) return counts;
  const read = backend.read.bind(backend);
  backend.read = async (dataId) => ((await read(dataId)) as Float32Array).fill(0);
  return counts;
}

/** Positions, and steps, before those that are counted: memory and bind groups are made meanwhile. */
const FIRST = 4;

async function main(): Promise<void> {
  const { checkpoint, args } = parseBench(
    'bench:calls',
    'What JavaScript has to do for a GPU, on a device that computes nothing.',
  );
  const computes = args.gpu !== undefined;
  const kernels = args.kernels === 'auto';
  if (computes) console.log(await loadWebGpu(args.gpu, { kernels }));
  else await startWebGpu({ api: 'null', name: '' }, { kernels });
  const counts = countCommands({ computes });
  const print = (what: string, { difference: { dispatches, ...others }, ms, wall }: ReturnType<typeof since>) => {
    const rest = Object.entries(others).map(([name, count]) => `${count} ${name}`);
    const each = dispatches > 0 ? `, ${((1000 * ms) / dispatches).toFixed(1)} µs a dispatch` : '';
    const took = computes ? `; took ${wall.toFixed(1)} ms` : '';
    console.log(
      `${what.padEnd(10)} ${dispatches} dispatches, ${rest.join(', ')}; ${ms.toFixed(1)} ms of a core${each}${took}`,
    );
  };
  let before = { ...counts };
  // Of this process alone: others may share the cores.
  const milliseconds = () => {
    const { user, system } = process.cpuUsage();
    return (user + system) / 1000;
  };
  let [began, wallBegan] = [milliseconds(), performance.now()];
  const since = () => {
    const difference = Object.fromEntries(NAMES.map((name) => [name, counts[name] - before[name]])) as Counts;
    before = { ...counts };
    const [ms, wall] = [milliseconds() - began, performance.now() - wallBegan];
    [began, wallBegan] = [milliseconds(), performance.now()];
    return { difference, ms, wall };
  };

  const state = await createTrainingState(await loadCheckpoint(checkpoint), {}, args);
  const prompts = Array.from({ length: args.prompts }, () => new Array<number>(args.promptLen).fill(3));
  const positions: ReturnType<typeof since>[] = [];
  const options = { temperature: 1, topK: 0, topP: 1, maxNewTokens: args.newTokens, eosTokenIds: [] };
  await generate(state.model, prompts, args.group, {
    ...{ ...options, random: () => 0.5 },
    onProgress: () => void positions.push(since()),
  });
  const counted = positions.slice(FIRST);
  const middle = (of: (position: ReturnType<typeof since>) => number) => median(counted.map(of));
  const difference = Object.fromEntries(NAMES.map((name) => [name, middle((p) => p.difference[name])])) as Counts;
  print('position', { difference, ms: middle(({ ms }) => ms), wall: middle(({ wall }) => wall) });

  let last = false;
  const step = await createStep(checkpoint, args, (part) => {
    const counted = since();
    if (last) print(part.replace('_s', ''), counted);
  });
  for (let i = 0; i < FIRST; i++) await step();
  last = true;
  since();
  await step();
  console.log(`(${PARTS.slice(0, 3).join(', ').replaceAll('_s', '')}: the parts of a whole step)`);
}

await runMain(import.meta.url, main);
