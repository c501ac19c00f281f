/**
 * Where tokens are. Linear layers see the N real tokens of a batch, packed without padding; attention sees them in a
 * grid of P prompts × G rows × T tokens, so that the rows of one prompt share its keys. Padding exists only as holes
 * in that grid: nothing real ever looks at it, so its content cannot matter.
 */
import * as tf from '@tensorflow/tfjs';
import type { RowIndex } from '../ops/move_rows/move_rows.ts';
import type { LlamaConfig } from './config.ts';

/** One sequence of a batch: which prompt (0 … P−1) it continues, and how many tokens it brings. */
export type Row = { prompt: number; length: number };

/**
 * Index tensors that move rows of heads between the packed order (token, head) and the grid's order.
 * Queries lie in the grid as (kv head, prompt, row of the prompt, query head of that kv head, token), keys and values
 * as (kv head, prompt, row of the prompt, token).
 */
export type Layout = {
  /** P prompts, G rows for each (the most any prompt has), T tokens for each (the most any row has). */
  prompts: number;
  group: number;
  time: number;
  /** The slot of each row in the P × G grid. */
  slots: number[];
  queries: { toGrid: RowIndex; fromGrid: RowIndex };
  keys: { toGrid: RowIndex; fromGrid: RowIndex };
};

/**
 * Sequences as rows that share the forward pass of equal prompts.
 * @returns each different prompt once, in the order of their first sequences, and a row for every sequence
 */
export function sharePrompts(sequences: { prompt: number[]; completion: number[] }[]): {
  prompts: number[][];
  rows: Row[];
} {
  const keys = sequences.map(({ prompt }) => prompt.join());
  const unique = [...new Set(keys)];
  return {
    prompts: unique.map((key) => sequences[keys.indexOf(key)].prompt),
    rows: sequences.map(({ completion }, i) => ({ prompt: unique.indexOf(keys[i]), length: completion.length })),
  };
}

/**
 * Lays rows out for attention. Create it inside a `tf.tidy`: it holds four int32 tensors.
 * @param rows - in packed order
 * @param prompts - P
 */
export function createLayout(rows: Row[], prompts: number, config: LlamaConfig): Layout {
  const { slots, group } = assignSlots(rows, prompts);
  const time = Math.max(...rows.map(({ length }) => length));
  const move = (heads: number) => headMoves(rows, slots, { slotCount: prompts * group, time, heads, config });
  return { prompts, group, time, slots, queries: move(config.numHeads), keys: move(config.numKvHeads) };
}

/**
 * Gives each row a slot of the P × G grid: prompt · G + its place among the rows of that prompt.
 * @returns the slot of each row, and G
 */
export function assignSlots(rows: Row[], prompts: number): { slots: number[]; group: number } {
  const members = new Array<number>(prompts).fill(0);
  const places = rows.map(({ prompt }) => members[prompt]++);
  const group = Math.max(...members);
  return { slots: rows.map(({ prompt }, r) => prompt * group + places[r]), group };
}

function headMoves(
  rows: Row[],
  slots: number[],
  { slotCount, time, heads, config }: { slotCount: number; time: number; heads: number; config: LlamaConfig },
) {
  const shared = heads / config.numKvHeads;
  const packedSize = rows.reduce((sum, { length }) => sum + length, 0) * heads;
  const gridSize = config.numKvHeads * slotCount * shared * time;
  const toGrid = new Int32Array(gridSize).fill(packedSize);
  const fromGrid = new Int32Array(packedSize);
  let packed = 0;
  rows.forEach(({ length }, r) => {
    for (let t = 0; t < length; t++) {
      for (let head = 0; head < heads; head++) {
        const kvHead = Math.floor(head / shared);
        const grid = ((kvHead * slotCount + slots[r]) * shared + (head % shared)) * time + t;
        toGrid[grid] = packed;
        fromGrid[packed++] = grid;
      }
    }
  });
  return {
    toGrid: { rows: tf.tensor1d(toGrid, 'int32'), holes: gridSize > packedSize },
    fromGrid: { rows: tf.tensor1d(fromGrid, 'int32'), holes: false },
  };
}
