/**
 * Writes the calculator's task: `tasks/products/train.jsonl` and `tasks/products/test.jsonl`, sums and differences of
 * products and large numbers such as `473*86+9120`, too large to be worked out by heart. No question of one file is in
 * the other.
 *
 *   node --import tsx tasks/products/generate.ts
 */
import { runMain } from '../../lib/cli/main.ts';
import { parseNoOptions } from '../../lib/cli/options.ts';
import { drawTask, type Task, writeTask } from '../draw_task.ts';

/** An expression and its value, at least 1,000. */
export type Product = { text: string; value: number };

const SEED = 23;
const TRAIN_SIZE = 4000;
const TEST_SIZE = 200;

/**
 * Draws two or three terms with + or −, each a product of two factors (two and three digits) or a number of four or five.
 * @param random - uniform numbers in [0, 1)
 */
export function drawProduct(random: () => number): Product {
  const between = (low: number, high: number) => low + Math.floor(random() * (high + 1 - low));
  const term = (): Product => {
    if (random() < 0.4) {
      const value = between(1000, 99999);
      return { text: `${value}`, value };
    }
    const [a, b] = [between(100, 999), between(11, 99)];
    return { text: random() < 0.5 ? `${a}*${b}` : `${b}*${a}`, value: a * b };
  };
  for (;;) {
    const [first, ...others] = Array.from({ length: random() < 0.5 ? 2 : 3 }, term);
    const signed = others.map(({ text, value }) =>
      random() < 0.5 ? { text: `+${text}`, value } : { text: `-${text}`, value: -value },
    );
    const all = [first, ...signed];
    const value = all.reduce((sum, { value }) => sum + value, 0);
    if (value >= 1000) return { text: all.map(({ text }) => text).join(''), value };
  }
}

export const taskProducts = (): Task<Product> =>
  drawTask(SEED, drawProduct, ({ text }) => text, { test: TEST_SIZE, train: TRAIN_SIZE });

function main(): void {
  parseNoOptions(
    'tasks/products/generate.ts',
    "Writes the calculator's task, tasks/products/train.jsonl and tasks/products/test.jsonl, as it is in the repository.",
  );
  writeTask('products', taskProducts(), ({ text, value }) => ({ question: text, answer: value }));
}

await runMain(import.meta.url, main);
