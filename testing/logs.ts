/** For tests that read a run's folder: folders as runs leave them, without training. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

type Line = Record<string, unknown>;
const lines = (entries: Line[]) => entries.map((entry) => `${JSON.stringify(entry)}\n`).join('');

/** What a step logs: metrics that rise slowly, and a group of completions to one of 50 questions. */
export function stepOf(step: number, { seed = 0, size = 8 } = {}): { metrics: Line; samples: Line[] } {
  const [a, b] = [(7 * step + 3) % 50, 12];
  const noise = Math.abs(Math.sin(step * 12.9898 + seed)) / 5;
  const rewards = Array.from({ length: size }, (_, i) => Number((i * 5 + step) % size < size / 2));
  const mean = rewards.reduce((sum, reward) => sum + reward, 0) / size;
  const samples = rewards.map((reward, i) => {
    const pieces = ['<think>', ...`${a}+${b}=${a + b + 1 - reward}`, '</think>', String(a + b + 1 - reward), '<eos>'];
    return {
      ...{ step, question: `${a}+${b}`, answer: String(a + b), completion: pieces.slice(0, -1).join('') },
      ...{ tokens: pieces.length, reward, advantage: 2 * (reward - mean) },
      ...{ pieces, log_probs: pieces.map((_, t) => -(((t * 7 + i + step) % 10) ** 2) / 50) },
    };
  });
  const metrics = {
    ...{ step, reward: 0.4 + noise + step / 40_000, reward_std: 0.4, frac_reward_zero_std: noise },
    ...{ 'rewards/accuracy/mean': 0.5, 'completions/mean_length': 16 - noise, 'completions/clipped_ratio': 0 },
    ...{ 'completions/mean_right_length': 16, 'completions/mean_wrong_length': 15.5, loss: 0, grad_norm: 1 - noise },
    ...{ learning_rate: 2.5e-4, entropy: 0.1 + noise, 'clip_ratio/low_mean': 0, 'clip_ratio/high_mean': 0 },
    ...{ skipped_updates: 0, num_tokens: 128 * step, step_time: 0.4, tokens_per_second: 9000 + 1000 * noise },
    ...(step % 25 === 0 ? { 'eval/accuracy': Math.min(1, 0.4 + step / 20_000) } : {}),
  };
  return { metrics, samples };
}

/** Writes the folder of a run of so many steps. */
export function writeRun(
  folder: string,
  {
    steps,
    seed = 0,
    experiment = 'experiment_base',
    finished = true,
    samples = [],
    notices = [],
    answers = [],
  }: {
    steps: number;
    seed?: number;
    experiment?: string;
    finished?: boolean;
    /** lines after those of the steps */
    samples?: Line[];
    notices?: Line[];
    answers?: Line[];
  },
): void {
  mkdirSync(folder, { recursive: true });
  const options = { modelName: 'models/tiny', maxSteps: steps, seed, learningRate: 2.5e-4 };
  writeFileSync(join(folder, 'config.json'), JSON.stringify({ experiment, options }));
  const made = Array.from({ length: steps }, (_, i) => stepOf(i + 1, { seed }));
  writeFileSync(join(folder, 'metrics.jsonl'), lines(made.map(({ metrics }) => metrics)));
  const all = [...made.flatMap((step) => step.samples), ...samples];
  writeFileSync(join(folder, 'completions.jsonl'), lines(all));
  if (notices.length > 0) writeFileSync(join(folder, 'notices.jsonl'), lines(notices));
  if (answers.length > 0) writeFileSync(join(folder, 'answers.jsonl'), lines(answers));
  if (finished) mkdirSync(join(folder, 'final_model'), { recursive: true });
}
