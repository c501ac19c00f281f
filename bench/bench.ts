/**
 * Times one GRPO step (sampling, log-probs under a reference, training) on completions of a fixed length, so that every
 * implementation does the same work.
 *
 *   npm run bench -- models/tiny --prompts 16 --group 8 --prompt-len 24 --new-tokens 48 --threads 2
 *
 * With `--peer <script>`, a Python script that takes the same arguments and prints the same JSON is run in turns with
 * ours, and the ratios of its times to ours are printed.
 */
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { Command, Option } from '@commander-js/extra-typings';
import * as tf from '@tensorflow/tfjs';
import { createCommand, type Experience, type Rollout, toExperience, updateOnce } from '../experiment_base/train.ts';
import { initBackend } from '../lib/backend/index.ts';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { backendOptions } from '../lib/cli/backend_options.ts';
import { runMain } from '../lib/cli/main.ts';
import { examples, integer, number, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { generate } from '../lib/generation/generate.ts';
import { type LlamaConfig, parameterShapes, readConfig } from '../lib/model/config.ts';
import { disposeModel } from '../lib/model/model.ts';
import { permutation, uniform } from '../lib/random.ts';
import { createTrainingState } from '../lib/run/training_state.ts';
import { sweep } from './sweep.ts';

export const command = new Command('bench')
  .description('Times the steps of GRPO, without learning anything.')
  .usage('[checkpoint] [options]')
  .addHelpText(
    'after',
    examples('npm run bench -- models/tiny --repeats 3', 'npm run bench -- models/tiny --backend wasm --peer'),
  )
  .optionsGroup('The step:')
  .option('--prompts <n>', 'P', integer({ min: 1 }), 16)
  .option('--group <n>', 'G', integer({ min: 1 }), 8)
  .option('--prompt-len <n>', 'tokens a prompt', integer({ min: 1 }), 24)
  .option('--new-tokens <n>', 'tokens a completion', integer({ min: 1 }), 48)
  .option('--minibatch <n>', 'completions an update', integer({ min: 1 }), 64)
  .option('--kl-coef <x>', 'β; 0 computes no reference', number({ min: 0 }), 0.01)
  .option('--micro-batch-tokens <n>', 'tokens in memory at once', integer({ min: 1 }), 8192)
  .option('--lora-rank <n>', 'train an adapter of this rank (0: all weights)', integer({ min: 0 }), 0)
  .option('--gradient-checkpointing', 'run each layer again for its gradient', false)
  .optionsGroup('Backend:')
  .addOption(backendOptions.backend())
  .addOption(backendOptions.gpu())
  .option('--threads <n>', 'threads of wasm or native TensorFlow', integer({ min: 1, max: 64 }), 2)
  .addOption(backendOptions.blas())
  .addOption(backendOptions.kernels())
  .optionsGroup('Measuring:')
  .option('--repeats <n>', 'steps to time, after one that is not', integer({ min: 1 }), 5)
  .option('--peer [script]', 'also run this Python script, in turns with ours (default: bench/peer_torch.py)')
  .addOption(new Option('--device <name>', 'of the peer').choices(['cpu', 'cuda']).default('cpu' as const))
  .option('--sweep', 'measure how the time grows with what is varied, and draw it', false)
  .option('--json', 'print one line of JSON', false)
  .helpOption('-h, --help', 'display help for command');

type Arguments = ReturnType<typeof command.opts>;

const LEARNING_RATE = 1e-6;

/** Seconds of the parts of one step. */
type Times = { rollout_s: number; log_probs_s: number; train_s: number; step_s: number };

export const PARTS = ['rollout_s', 'log_probs_s', 'train_s', 'step_s'] as const;

/** @param onPart - called at the end of each part */
export async function createStep(
  checkpoint: string,
  args: Arguments,
  onPart: (part: (typeof PARTS)[number]) => void = () => {},
): Promise<() => Promise<Times>> {
  const reference = await loadCheckpoint(checkpoint);
  const state = await createTrainingState(reference, {}, args);
  if (args.klCoef === 0) disposeModel(reference);
  const options = {
    ...createCommand().opts(),
    klCoef: args.klCoef,
    microBatchTokens: args.microBatchTokens,
  };
  let step = 0;
  return async () => {
    step++;
    const prompts = Array.from({ length: args.prompts }, (_, p) =>
      Array.from({ length: args.promptLen }, (_, t) =>
        Math.floor(3 + uniform(0, step, p, t) * (reference.config.vocabSize - 3)),
      ),
    );
    const began = performance.now();
    const completions = await generate(state.model, prompts, args.group, {
      temperature: 1,
      topK: 0,
      topP: 1,
      maxNewTokens: args.newTokens,
      eosTokenIds: [],
      random: (row, position) => uniform(1, step, row, position),
    });
    const sampled = performance.now();
    onPart('rollout_s');
    const rollouts = completions.map(({ tokens, logProbs, finishReason }, row): Rollout => {
      const [p, g] = [Math.floor(row / args.group), row % args.group];
      return {
        problem: { question: '', answer: '', source: '', columns: {} },
        prompt: prompts[p],
        completion: tokens,
        oldLogProbs: logProbs, // recorded by the sampler: there is no second forward pass for them
        text: '',
        finishReason,
        reward: uniform(2, step, p, g),
        verdict: 'wrong',
      };
    });
    // Alone, a completion has no group to be compared with: its reward stands for its advantage.
    const alone = rollouts.map((rollout): Experience => ({ ...rollout, advantage: rollout.reward }));
    const compared = { ...options, numGenerations: args.group };
    const experience =
      args.group > 1 ? await toExperience(rollouts, args.klCoef > 0 ? reference : undefined, compared) : alone;
    const referred = performance.now();
    onPart('log_probs_s');
    const order = permutation(experience.length, 3, step);
    for (let begin = 0; begin < order.length; begin += args.minibatch) {
      const window = order.slice(begin, begin + args.minibatch).map((i) => experience[i]);
      await updateOnce(state, window, LEARNING_RATE, options);
    }
    const ended = performance.now();
    onPart('train_s');
    const seconds = [sampled - began, referred - sampled, ended - referred, ended - began].map((ms) => ms / 1000);
    return Object.fromEntries(PARTS.map((part, i) => [part, seconds[i]])) as Times;
  };
}

/** Floating-point operations of the matrix products that a step cannot do without, attention's included. */
function stepFlops(config: LlamaConfig, args: Arguments): number {
  const { prompts, group, promptLen, newTokens, klCoef } = args;
  const { hiddenSize, numHeads, headDim, numLayers, vocabSize } = config;
  const matrices = Object.entries(parameterShapes(config)).filter(([name]) => name.endsWith('proj.weight'));
  const layers = matrices.reduce((sum, [, [rows, columns]]) => sum + rows * columns, 0);
  const attention = (keys: number) => 2 * numLayers * numHeads * headDim * keys;
  const sampled = prompts * group * newTokens;
  const shared = prompts * (promptLen - 1);
  const token = layers + vocabSize * hiddenSize + attention(promptLen + newTokens / 2);
  const forward = 2 * (sampled * token + shared * (layers + attention(promptLen / 2)));
  // Sampling and the reference go forward; training also goes back, which takes two products for each one.
  return forward * (1 + (klCoef > 0 ? 1 : 0) + 3);
}

/** Operations a second in the product of two large matrices: the best of several. */
async function gemmPeak(): Promise<number> {
  const size = 1024;
  const [a, b] = [tf.randomNormal([size, size]), tf.randomNormal([size, size])];
  let best = Number.POSITIVE_INFINITY;
  for (let i = 0; i < 8; i++) {
    const began = performance.now();
    const product = tf.matMul(a, b);
    await product.data();
    best = Math.min(best, performance.now() - began);
    product.dispose();
  }
  tf.dispose([a, b]);
  return (2 * size ** 3) / (best / 1000);
}

/** One run of the peer, whose own repeats it reports as a median. */
function runPeer(script: string, checkpoint: string, args: Arguments): Times & { torch?: string } {
  const names = ['prompts', 'group', 'promptLen', 'newTokens', 'minibatch', 'threads'] as const;
  const flags = names.flatMap((name) => [`--${name.replace(/[A-Z]/, (c) => `-${c.toLowerCase()}`)}`, `${args[name]}`]);
  const { status, stdout, stderr } = spawnSync(process.env.PYTHON ?? 'python3', [
    script,
    checkpoint,
    ...flags,
    ...(args.device === 'cpu' ? [] : ['--device', args.device]),
    '--repeats',
    '1',
    '--json',
  ]);
  try {
    if (status === 0) return JSON.parse(String(stdout));
  } catch {
    throw new UserError(`--peer ${script} must print one line of JSON, found ${String(stdout).slice(0, 60)}`);
  }
  const reason = String(stderr).trim().split('\n').at(-1);
  throw new UserError(
    `--peer ${script} did not run (${reason}): it needs Python with torch and numpy; the environment variable PYTHON names another python3`,
  );
}

/** The middle value; of an even number of values, the mean of both in the middle. */
export const median = (values: number[]): number => {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

/**
 * The command line, which like the peer's begins with the checkpoint (models/tiny, unless there is one). Sets the number of
 * threads, which native TensorFlow reads once, when it is loaded.
 * @returns also the `flags` behind the checkpoint, as they were given
 */
export function parseBench(
  name = command.name(),
  description = command.description(),
): { checkpoint: string; flags: string[]; args: Arguments } {
  const [node, script, ...given] = process.argv;
  const [checkpoint, ...flags] = given[0]?.startsWith('-') === false ? given : ['models/tiny', ...given];
  const args = parseOptions(command.name(name).description(description), [node, script, ...flags]);
  process.env.TF_NUM_INTRAOP_THREADS = String(args.threads);
  return { checkpoint, flags, args };
}

async function main(): Promise<void> {
  const { checkpoint, flags, args } = parseBench();
  if (args.peer !== undefined && (args.klCoef === 0 || args.loraRank > 0)) {
    throw new UserError('--peer always has a reference and trains all weights: leave out --kl-coef 0 and --lora-rank');
  }
  if (args.sweep) {
    const others = flags.filter((flag) => flag !== '--sweep');
    return sweep(checkpoint, others, 'docs/bench_sweep.svg');
  }
  const backend = await initBackend(args.backend, args);
  const step = await createStep(checkpoint, args);
  const peak = await gemmPeak();
  await step();
  const [ours, peers]: [Times[], Times[]] = [[], []];
  let torch: string | undefined;
  for (let i = 0; i < args.repeats; i++) {
    ours.push(await step());
    if (args.peer === undefined) continue;
    const script = args.peer === true ? join(import.meta.dirname, 'peer_torch.py') : args.peer;
    const peer = runPeer(script, checkpoint, args);
    peers.push(peer);
    torch = peer.torch;
  }
  const tokens = args.prompts * args.group * args.newTokens;
  const medians = Object.fromEntries(PARTS.map((part) => [part, median(ours.map((times) => times[part]))])) as Times;
  const result = {
    backend,
    threads: args.threads,
    ...medians,
    rollout_tok_s: tokens / medians.rollout_s,
    train_tok_s: tokens / medians.train_s,
    step_tok_s: tokens / medians.step_s,
    gemm_peak_gflops: peak / 1e9,
    gemm_peak_share: stepFlops(await readConfig(checkpoint), args) / medians.step_s / peak,
    peak_memory_mb: process.resourceUsage().maxRSS / 1024,
  };
  if (args.json) return console.log(JSON.stringify({ ...result, ours, peers }));
  for (const [name, value] of Object.entries(result)) {
    console.log(name.padEnd(16), typeof value === 'number' ? Number(value.toPrecision(4)) : value);
  }
  const spread = (values: number[]) =>
    `${median(values).toFixed(2)} (${Math.min(...values).toFixed(2)} to ${Math.max(...values).toFixed(2)})`;
  if (args.repeats === 1 && peers.length === 0) return;
  for (const part of PARTS) {
    const line = [part.padEnd(16), 'ours', spread(ours.map((times) => times[part]))];
    if (peers.length > 0) {
      line.push(`  torch ${torch}`, spread(peers.map((times) => times[part])));
      line.push('  torch / ours', spread(peers.map((times, i) => times[part] / ours[i][part])));
    }
    console.log(...line);
  }
}

await runMain(import.meta.url, main);
