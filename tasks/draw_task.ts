/** Tasks that are drawn at random: items that are all different, some of them held out. */
import { writeFileSync } from 'node:fs';
import { uniform } from '../lib/random.ts';

/** The items of a task: the held-out ones, and those to train on. */
export type Task<T> = { test: T[]; train: T[] };

/**
 * Draws a task whose items are all different.
 * @param draw - an item from uniform numbers in [0, 1)
 * @param key - two items with the same one are the same
 * @param sizes - how many items are held out, and how many are to train on
 */
export function drawTask<T>(
  seed: number,
  draw: (random: () => number) => T,
  key: (item: T) => string,
  sizes: { test: number; train: number },
): Task<T> {
  const items = new Map<string, T>();
  for (let i = 0; items.size < sizes.test + sizes.train; i++) {
    let number = 0;
    const item = draw(() => uniform(seed, i, number++));
    items.set(key(item), item);
  }
  const all = [...items.values()];
  return { test: all.slice(0, sizes.test), train: all.slice(sizes.test) };
}

/** Writes `tasks/<name>/train.jsonl` and `tasks/<name>/test.jsonl`. */
export function writeTask<T>(
  name: string,
  task: Task<T>,
  line: (item: T) => { question: string; answer: number | string },
): void {
  for (const [split, items] of Object.entries(task)) {
    const lines = items.map((item) => `${JSON.stringify(line(item))}\n`);
    writeFileSync(`tasks/${name}/${split}.jsonl`, lines.join(''));
  }
}
