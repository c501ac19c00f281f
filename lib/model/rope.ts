/** Rotary position embedding (RoFormer, Su et al. 2021): what a config says of it, and the frequencies that follow. */
import { isDeepStrictEqual } from 'node:util';
import { UserError } from '../errors.ts';
import { fieldsOf, isObject, type JsonObject } from '../json.ts';
import { shown } from '../text.ts';

/** How rotary frequencies are slowed down for contexts longer than those of pretraining. */
type RopeScaling = { type: 'linear'; factor: number } | Llama3Scaling;

type Llama3Scaling = {
  type: 'llama3';
  factor: number;
  lowFreqFactor: number;
  highFreqFactor: number;
  originalMaxPositionEmbeddings: number;
};

export type Rope = { ropeTheta: number; ropeScaling: RopeScaling | null };

/**
 * Angles that rotary position embedding advances by from one position to the next, fastest first (RoFormer, section
 * 3.4.2), slowed down for long contexts where the config says so (linear and llama3 scaling, as in transformers'
 * `modeling_rope_utils.py`). Rounded to float32, as the checkpoints were trained.
 * @returns radians a position, shape (headDim / 2)
 */
export function ropeInverseFrequencies(config: Rope & { headDim: number }): Float32Array {
  const { headDim, ropeTheta, ropeScaling } = config;
  return Float32Array.from({ length: headDim / 2 }, (_, i) => {
    const frequency = ropeTheta ** ((-2 * i) / headDim);
    if (!ropeScaling) return frequency;
    if (ropeScaling.type === 'linear') return frequency / ropeScaling.factor;
    const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = ropeScaling;
    // Turns within the original context: many turns are left alone, less than one is slowed by the whole factor.
    const turns = (originalMaxPositionEmbeddings * frequency) / (2 * Math.PI);
    const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
    const kept = Math.min(1, Math.max(0, smooth));
    return frequency * (kept + (1 - kept) / factor);
  });
}

/** What RoPE of each type takes, besides `rope_type` (older: `type`), `rope_theta` and `partial_rotary_factor`. */
const ROPE_KEYS: Record<string, string[]> = {
  default: [],
  linear: ['factor'],
  llama3: ['factor', 'low_freq_factor', 'high_freq_factor', 'original_max_position_embeddings'],
};

/**
 * Reads what `config.json` says of RoPE. Older ones have `rope_theta` and `rope_scaling`; since transformers 5,
 * `rope_parameters` holds both.
 * @throws {UserError} if they contradict each other, or say something that is not known here: no guess is safe
 */
export function readRope(
  file: string,
  json: JsonObject,
  { maxPositionEmbeddings }: { maxPositionEmbeddings: number },
): Rope {
  const key = json.rope_parameters ? 'rope_parameters' : 'rope_scaling';
  const rope = json[key] ?? {};
  if (!isObject(rope)) throw new UserError(`${file}: "${key}" must be an object or null, found ${shown(rope)}.`);
  const agreed = (values: Record<string, unknown>): unknown => {
    const [first, ...others] = Object.entries(values).filter(([, value]) => (value ?? null) !== null);
    const other = others.find(([, value]) => !isDeepStrictEqual(value, first[1]));
    if (!other) return first?.[1];
    const says = [first, other].map(([name, value]) => `"${name}" is ${shown(value)}`).join(' and ');
    throw new UserError(`${file}: ${says}, which contradict each other: keep the one that the model was trained with`);
  };
  agreed({ rope_parameters: json.rope_parameters, rope_scaling: json.rope_scaling });
  const both = (name: string) => agreed({ [`${key}.${name}`]: rope[name], [name]: json[name] });
  const merged: JsonObject = {
    ...rope,
    rope_theta: both('rope_theta') ?? 10_000,
    original_max_position_embeddings: both('original_max_position_embeddings') ?? maxPositionEmbeddings,
  };
  const { integer, number } = fieldsOf(file, merged, `${key}.`);
  const ropeTheta = number('rope_theta');
  const partial = both('partial_rotary_factor') ?? 1;
  if (partial !== 1) throw new UserError(`${file}: "partial_rotary_factor": ${shown(partial)} is not supported.`);

  const named = agreed({ [`${key}.rope_type`]: rope.rope_type, [`${key}.type`]: rope.type });
  const type = named ?? (Object.hasOwn(rope, 'factor') ? null : 'default');
  if (typeof type !== 'string' || !Object.hasOwn(ROPE_KEYS, type)) {
    throw new UserError(
      `${file}: RoPE of type ${shown(type)} ("${key}") is not supported; supported are "default", "linear" and "llama3".`,
    );
  }
  const known = ['rope_type', 'type', 'rope_theta', 'partial_rotary_factor', ...ROPE_KEYS[type]];
  const unknown = Object.keys(rope).find((name) => rope[name] !== null && !known.includes(name));
  if (unknown !== undefined) {
    throw new UserError(
      `${file}: "${key}" has ${shown(unknown)}, which RoPE of type "${type}" does not have: what is meant is not computed here`,
    );
  }
  if (type === 'default') return { ropeTheta, ropeScaling: null };
  if (type === 'linear') return { ropeTheta, ropeScaling: { type, factor: number('factor') } };
  const ropeScaling: Llama3Scaling = {
    type: 'llama3',
    factor: number('factor'),
    lowFreqFactor: number('low_freq_factor'),
    highFreqFactor: number('high_freq_factor'),
    originalMaxPositionEmbeddings: integer('original_max_position_embeddings'),
  };
  if (ropeScaling.highFreqFactor <= ropeScaling.lowFreqFactor) {
    throw new UserError(`${file}: "${key}.high_freq_factor" must be larger than "${key}.low_freq_factor".`);
  }
  return { ropeTheta, ropeScaling };
}
