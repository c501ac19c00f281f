/**
 * The forward pass of Llama and Qwen as two entry points that sampling and training share: `prefill` runs each prompt once,
 * `extend` runs new tokens of all rows against the shared prompt keys and their own. Both are differentiable.
 */
import * as tf from '@tensorflow/tfjs';
import { append } from '../ops/append/append.ts';
import { attention, type KeySegment, type Visible } from '../ops/attention/attention.ts';
import { fusedDecoderLayer, type LayerTensors } from '../ops/decoder_layer/decoder_layer.ts';
import { linear } from '../ops/linear/linear.ts';
import { moveRows } from '../ops/move_rows/move_rows.ts';
import { recomputed } from '../ops/recomputed.ts';
import { rmsNorm } from '../ops/rms_norm/rms_norm.ts';
import { rotaryEmbedding } from '../ops/rotary_embedding/rotary_embedding.ts';
import { swiGlu } from '../ops/swiglu/swiglu.ts';
import type { LlamaConfig } from './config.ts';
import { assignSlots, createLayout, type Layout, type Row, sharePrompts } from './layout.ts';
import { type Model, trainable, withTrainable } from './model.ts';
import { rotaryTables } from './rotary_tables.ts';

/** Keys and values of one layer, each of shape (kv heads · slots, tokens, head dimension). */
type KeysValues = { k: tf.Tensor3D; v: tf.Tensor3D };

/** The rows' own keys and values in every layer: of `length` tokens for each row, behind which there may be room for more. */
export type Past = { layers: KeysValues[]; length: number };

/** Keys and values of P prompts in every layer; behind those of a prompt that is shorter than others lies padding. */
export type Prefix = { lengths: number[]; layers: KeysValues[] };

/**
 * Runs each prompt once and returns the keys and values that its completions will share.
 * @param prompts - P lists of token ids; some may be empty
 * @returns the prefix, or undefined if all prompts are empty
 */
export function prefill(model: Model, prompts: number[][]): Prefix | undefined {
  const lengths = prompts.map((prompt) => prompt.length);
  const longest = Math.max(...lengths);
  if (longest === 0) return undefined;
  // An empty prompt cannot be laid out as a row of no tokens: it gets one that nobody looks at.
  const padded = prompts.map((prompt) => (prompt.length > 0 ? prompt : [0]));
  const rows = padded.map((prompt, p) => ({ prompt: p, length: prompt.length }));
  const { layers } = forward(model, rows, { tokens: padded.flat(), starts: rows.map(() => 0), prompts: rows.length });
  return { lengths, layers };
}

/**
 * Runs new tokens of B rows, each after its prompt and after what the row has said so far.
 * @param prefix - from {@link prefill}; undefined if no prompt has a token
 * @param past - the rows' own keys and values so far; undefined at the start
 * @param rows - in packed order; with a past, the same rows in the same order as in the call that made it
 * @param tokens - token ids of all rows, packed: those of row 0, then those of row 1, …; or, if each row has
 *   one, a tensor of shape (B)
 * @param room - tokens that the rows will have in the end: with it, the past is not used again, so that the new keys can be
 *   put into its memory, and no gradient is recorded
 * @returns `hidden`: the final hidden states (after the last norm), packed, shape (N, H); `own`: the rows' own keys
 *   and values including the new tokens
 */
export function extend(
  model: Model,
  prefix: Prefix | undefined,
  past: Past | undefined,
  { rows, tokens, room }: { rows: Row[]; tokens: number[] | tf.Tensor1D; room?: number },
): { hidden: tf.Tensor2D; own: Past } {
  const pastLength = past?.length ?? 0;
  const starts = rows.map(({ prompt }) => (prefix?.lengths[prompt] ?? 0) + pastLength);
  const prompts = prefix?.lengths.length ?? 1 + Math.max(...rows.map(({ prompt }) => prompt));
  const { hidden, layers, time } = forward(model, rows, { tokens, starts, prompts, prefix, past, room });
  return { hidden, own: { layers, length: pastLength + time } };
}

/**
 * Drops rows that have finished, and prompts that no row continues.
 * @param rows - the rows of the last {@link extend}
 * @param keep - indices of the rows to keep, ascending
 * @returns the kept rows, their prompts numbered anew, with prefix and past narrowed to them
 */
export function keepRows(
  { config }: Model,
  prefix: Prefix | undefined,
  past: Past,
  { rows, keep }: { rows: Row[]; keep: number[] },
): { prefix: Prefix | undefined; past: Past; rows: Row[] } {
  const prompts = [...new Set(keep.map((r) => rows[r].prompt))].sort((a, b) => a - b);
  const kept = keep.map((r) => ({ ...rows[r], prompt: prompts.indexOf(rows[r].prompt) }));
  const before = assignSlots(rows, prefix?.lengths.length ?? 1 + Math.max(...rows.map(({ prompt }) => prompt)));
  const after = assignSlots(kept, prompts.length);
  const oldSlots = past.layers[0].k.shape[0] / config.numKvHeads;
  // A slot without a row holds a copy of the first: what is in it is never read.
  const sources = new Array<number>(prompts.length * after.group).fill(before.slots[keep[0]]);
  after.slots.forEach((slot, i) => {
    sources[slot] = before.slots[keep[i]];
  });
  const select = (layers: KeysValues[], chosen: number[], outOf: number) => {
    const perHead = Array.from({ length: config.numKvHeads }, (_, head) => chosen.map((i) => head * outOf + i));
    const index = tf.tensor1d(perHead.flat(), 'int32');
    return layers.map(({ k, v }) => ({ k: tf.gather(k, index), v: tf.gather(v, index) }));
  };
  return tf.tidy(() => ({
    rows: kept,
    past: { length: past.length, layers: select(past.layers, sources, oldSlots) },
    prefix: prefix && {
      lengths: prompts.map((p) => prefix.lengths[p]),
      layers: select(prefix.layers, prompts, prefix.lengths.length),
    },
  }));
}

/**
 * The plain call: token ids in, logits out.
 * @param tokens - T token ids
 * @returns logits of the next token after each of them, shape (T, V)
 */
export function logits(model: Model, tokens: number[]): tf.Tensor2D {
  return tf.tidy(() => {
    const rows = [{ prompt: 0, length: tokens.length }];
    return linear(extend(model, undefined, undefined, { rows, tokens }).hidden, lmHead(model));
  });
}

/**
 * What a model with a score on top finds of texts: the score at the last token of each.
 * @param sequences - B lists of at least one token id, of any lengths; those with the same `prompt` share its forward pass
 * @returns scores, shape (B), differentiable
 */
export function scores(model: Model, sequences: { prompt: number[]; completion: number[] }[]): tf.Tensor1D {
  const { prompts, rows } = sharePrompts(sequences);
  const prefix = prefill(model, prompts);
  const { hidden } = extend(model, prefix, undefined, {
    rows,
    tokens: sequences.flatMap(({ completion }) => completion),
  });
  // Packed, the last token of a row is right before the first of the next one.
  const lasts: number[] = [];
  for (const { length } of rows) lasts.push((lasts.at(-1) ?? -1) + length);
  const from = new Int32Array(hidden.shape[0]).fill(rows.length); // a token that is not the last goes nowhere
  for (const [row, last] of lasts.entries()) from[last] = row;
  const toRows = { rows: tf.tensor1d(lasts, 'int32'), holes: false };
  const toTokens = { rows: tf.tensor1d(from, 'int32'), holes: hidden.shape[0] > rows.length };
  const ends = moveRows(hidden, toRows, toTokens); // (B, H)
  return tf.reshape(linear(ends, model.params['score.weight']), [-1]);
}

/** The output matrix, shape (V, H): its own parameter, or the embedding where the two are tied. */
export const lmHead = ({ config, params }: Model): tf.Tensor =>
  params[config.tieWordEmbeddings ? 'model.embed_tokens.weight' : 'lm_head.weight'];

type Batch = {
  tokens: number[] | tf.Tensor1D;
  /** Position of each row's first token. */
  starts: number[];
  prompts: number;
  prefix?: Prefix | undefined;
  past?: Past | undefined;
  room?: number | undefined;
};

function forward(model: Model, rows: Row[], { tokens, starts, prompts, prefix, past, room }: Batch) {
  const { config, params } = model;
  const createContext = (): Context => {
    const layout = createLayout(rows, prompts, config);
    const rope = rotaryTables(rows, starts, config);
    return { layout, rope, ...visibleKeys(layout, config, { prefix, past: past?.length ?? 0 }) };
  };
  const context = createContext();
  // Where no gradient is recorded, nothing is kept anyway.
  const recompute = model.gradientCheckpointing && tf.engine().state.gradientDepth > 0;
  const layers: KeysValues[] = [];
  const ids = Array.isArray(tokens) ? tf.tensor1d(tokens, 'int32') : tokens;
  let x = tf.gather(params['model.embed_tokens.weight'], ids) as tf.Tensor2D;
  for (let i = 0; i < config.numLayers; i++) {
    const before: Before = {
      past: past && { ...past.layers[i], length: past.length, room },
      prefix: prefix?.layers[i],
    };
    const out = recompute
      ? recomputedLayer(model, i, { x, context, createContext, before })
      : decoderLayer(model, i, { x, context, before });
    x = out.x;
    layers.push({ k: out.k, v: out.v });
  }
  return { hidden: rmsNorm(x, params['model.norm.weight'], config.rmsNormEps), layers, time: context.layout.time };
}

/** What all layers need to know of a batch. */
type Context = {
  layout: Layout;
  rope: { cos: tf.Tensor3D; sin: tf.Tensor3D };
  /** What queries may look at: of their prompt's keys, and of their own row's. */
  inPrefix?: Visible | undefined;
  inRow: Visible;
};

/** Keys and values of one layer that were there before the batch's own. */
type Before = {
  past?: (KeysValues & { length: number; room?: number | undefined }) | undefined;
  prefix?: KeysValues | undefined;
};

/** @returns `x`: the residual stream after layer i, shape (N, H); `k` and `v`: the rows' own, with those of the past */
function decoderLayer(
  { config, params, lora }: Model,
  i: number,
  { x, context, before }: { x: tf.Tensor2D; context: Context; before: Before },
): { x: tf.Tensor2D } & KeysValues {
  const { layout, rope, inPrefix, inRow } = context;
  const weight = (name: string) => params[`model.layers.${i}.${name}.weight`];
  const fused = lora || layout.time > 1 ? undefined : layerAtOnce({ config, params }, i, { x, context, before });
  if (fused) return fused;
  const project = (x: tf.Tensor2D, name: string): tf.Tensor2D => {
    const [y, bias] = [linear(x, weight(name)), params[`model.layers.${i}.${name}.bias`]];
    const adapter = (matrix: 'A' | 'B') => lora?.params[`model.layers.${i}.${name}.lora_${matrix}.weight`];
    const narrow = lora && adapter('A') && tf.mul(linear(x, adapter('A')!), lora.scale);
    return [bias, narrow && linear(narrow as tf.Tensor2D, adapter('B')!)].reduce<tf.Tensor2D>(
      (sum, part) => (part ? tf.add(sum, part) : sum),
      y,
    );
  };
  const normed = rmsNorm(x, weight('input_layernorm'), config.rmsNormEps);
  const heads = (name: string) =>
    tf.reshape(project(normed, `self_attn.${name}_proj`), [x.shape[0], -1, config.headDim]) as tf.Tensor3D;
  const normedHeads = (name: string) => {
    const all = heads(name);
    if (!config.qkNorm) return all;
    const rows = tf.reshape(all, [-1, config.headDim]) as tf.Tensor2D;
    return tf.reshape(rmsNorm(rows, weight(`self_attn.${name}_norm`), config.rmsNormEps), all.shape) as tf.Tensor3D;
  };
  const q = toGrid(rotaryEmbedding(normedHeads('q'), rope.cos, rope.sin), layout.queries);
  const k = keysInGrid(rotaryEmbedding(normedHeads('k'), rope.cos, rope.sin), layout, before.past, 'k');
  const v = keysInGrid(heads('v'), layout, before.past, 'v');
  const prefix = before.prefix ? [{ ...before.prefix, visible: inPrefix }] : [];
  const segments: KeySegment[] = [...prefix, { k, v, visible: inRow }];
  const mixed = moveRows(attention(q, segments), layout.queries.fromGrid, layout.queries.toGrid);
  const attended = tf.add(x, project(tf.reshape(mixed, [x.shape[0], -1]), 'self_attn.o_proj')) as tf.Tensor2D;
  const y = rmsNorm(attended, weight('post_attention_layernorm'), config.rmsNormEps);
  const gated = swiGlu(project(y, 'mlp.gate_proj'), project(y, 'mlp.up_proj'));
  return { x: tf.add(attended, project(gated, 'mlp.down_proj')), k, v };
}

/** {@link decoderLayer} of one token a row by a kernel of the backend; undefined where it has none, or a gradient is to come. */
function layerAtOnce(
  { config, params }: Model,
  i: number,
  {
    x,
    context: { layout, rope, inPrefix },
    before: { past, prefix },
  }: { x: tf.Tensor2D; context: Context; before: Before },
): ({ x: tf.Tensor2D } & KeysValues) | undefined {
  if (past?.room === undefined) return undefined;
  const tensors: Record<string, tf.Tensor | undefined> = {
    ...{ x, cos: rope.cos, sin: rope.sin },
    ...{ pastK: past.k, pastV: past.v, prefixK: prefix?.k, prefixV: prefix?.v },
  };
  for (const [name, param] of paramsOfLayer(i)) tensors[name] = params[param];
  const out = fusedDecoderLayer(tensors as LayerTensors<tf.Tensor>, {
    ...{ epsilon: config.rmsNormEps, length: past.length, room: past.room },
    ...{ slots: layout.slots, group: layout.group, prompts: inPrefix?.counts },
  });
  return out && { x: out[0], k: out[1], v: out[2] };
}

type OfPosition = 'x' | 'cos' | 'sin' | 'pastK' | 'pastV' | 'prefixK' | 'prefixV';

/** What `fusedDecoderLayer` calls a layer's parameters, and what they are called. */
const LAYER_PARAMS: Record<Exclude<keyof LayerTensors<tf.Tensor>, OfPosition>, string> = {
  ...{ inputNorm: 'input_layernorm.weight', outputNorm: 'post_attention_layernorm.weight' },
  ...{ q: 'self_attn.q_proj.weight', k: 'self_attn.k_proj.weight', v: 'self_attn.v_proj.weight' },
  ...{ qBias: 'self_attn.q_proj.bias', kBias: 'self_attn.k_proj.bias', vBias: 'self_attn.v_proj.bias' },
  ...{ qNorm: 'self_attn.q_norm.weight', kNorm: 'self_attn.k_norm.weight' },
  ...{ o: 'self_attn.o_proj.weight', oBias: 'self_attn.o_proj.bias' },
  ...{ gate: 'mlp.gate_proj.weight', up: 'mlp.up_proj.weight', down: 'mlp.down_proj.weight' },
  ...{ gateBias: 'mlp.gate_proj.bias', upBias: 'mlp.up_proj.bias', downBias: 'mlp.down_proj.bias' },
};

const paramsOfLayers: [name: string, param: string][][] = [];

/** The same in each layer: names are put together once, not at every token position. */
function paramsOfLayer(i: number): [name: string, param: string][] {
  paramsOfLayers[i] ??= Object.entries(LAYER_PARAMS).map(([name, param]) => [name, `model.layers.${i}.${param}`]);
  return paramsOfLayers[i];
}

/** {@link decoderLayer}, of which only the input is kept for the gradient. */
function recomputedLayer(
  model: Model,
  i: number,
  {
    x,
    context,
    createContext,
    before,
  }: { x: tf.Tensor2D; context: Context; createContext: () => Context; before: Before },
): { x: tf.Tensor2D } & KeysValues {
  const own = Object.entries(trainable(model)).filter(([name]) => name.startsWith(`model.layers.${i}.`));
  const names = own.map(([name]) => name);
  const { past, prefix } = before;
  const cached = [prefix?.k, prefix?.v, past?.k, past?.v];
  const present = cached.map((tensor) => tensor !== undefined);
  let first = true;
  const layer = (inputs: tf.Tensor[]) => {
    // The tensors in `model`, `before` and `context` are gone when the gradient is computed: it gets copies of the first
    // two, in this order, and makes the third anew.
    const ownContext = first ? context : createContext();
    first = false;
    const [x, ...rest] = inputs;
    const params = Object.fromEntries(names.map((name, n) => [name, rest[n]]));
    const given = rest.slice(names.length);
    const [prefixK, prefixV, k, v] = present.map((is) => (is ? given.shift() : undefined)) as tf.Tensor3D[];
    const out = decoderLayer(withTrainable(model, { ...trainable(model), ...params }), i, {
      x: x as tf.Tensor2D,
      context: ownContext,
      before: { past: past && { ...past, k, v }, prefix: prefix && { k: prefixK, v: prefixV } },
    });
    return [out.x, out.k, out.v];
  };
  const inputs = [x, ...own.map(([, tensor]) => tensor), ...cached.filter((tensor) => tensor !== undefined)];
  const [out, k, v] = recomputed(layer, inputs) as [tf.Tensor2D, tf.Tensor3D, tf.Tensor3D];
  return { x: out, k, v };
}

const toGrid = (x: tf.Tensor3D, { toGrid, fromGrid }: Layout['queries']): tf.Tensor2D =>
  moveRows(tf.reshape(x, [-1, x.shape[2]]), toGrid, fromGrid);

/** New keys (or values) in the grid, behind those of the past: shape (kv heads · slots, ≥ past + T, head dimension). */
function keysInGrid(x: tf.Tensor3D, layout: Layout, past: Before['past'], which: 'k' | 'v'): tf.Tensor3D {
  const grid = tf.reshape(toGrid(x, layout.keys), [-1, layout.time, x.shape[2]]) as tf.Tensor3D;
  return past ? append(past[which], grid, past) : grid;
}

/** Hides the padding of shorter prompts, later tokens of a row from earlier ones, and what lies behind its last. */
function visibleKeys(
  { group, time }: Layout,
  { numHeads, numKvHeads }: LlamaConfig,
  { prefix, past }: { prefix?: Prefix | undefined; past: number },
): Pick<Context, 'inPrefix' | 'inRow'> {
  // Prompts of one length are padded all the same, where longer ones were there before keepRows() dropped them.
  const padded = prefix?.lengths.some((length) => length !== prefix.layers[0].k.shape[1]);
  return {
    inPrefix: padded ? { counts: prefix!.lengths, divisor: (group * time * numHeads) / numKvHeads } : undefined,
    inRow: { counts: Array.from({ length: time }, (_, t) => past + t + 1), divisor: 1 },
  };
}
