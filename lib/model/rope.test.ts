import { describe, expect, test } from 'vitest';
import { UserError } from '../errors.ts';
import { readRope } from './rope.ts';

const read = (json: Record<string, unknown>) => readRope('config.json', json, { maxPositionEmbeddings: 2048 });
const llama3 = { rope_type: 'llama3', factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
const original = (value: unknown) => ({ original_max_position_embeddings: value });

test('the original context stands in the parameters, or beside them; or else it is the context, as in transformers', () => {
  const found = (json: Record<string, unknown>) => read(json).ropeScaling;
  const expected = { type: 'llama3', factor: 8, lowFreqFactor: 1, highFreqFactor: 4 };
  expect(found({ rope_scaling: { ...llama3, ...original(64) } })).toEqual({
    ...expected,
    originalMaxPositionEmbeddings: 64,
  });
  expect(found({ rope_parameters: llama3, ...original(128) })).toMatchObject({ originalMaxPositionEmbeddings: 128 });
  expect(found({ rope_parameters: llama3 })).toMatchObject({ originalMaxPositionEmbeddings: 2048 });
});

test('values that are said twice may agree, and null says nothing', () => {
  const rope_scaling = { ...llama3, ...original(64), type: 'llama3', rope_theta: 5000, attention_factor: null };
  const json = { rope_scaling, rope_parameters: rope_scaling, rope_theta: 5000, ...original(64) };
  expect(read(json)).toEqual(read({ rope_scaling, rope_parameters: null, rope_theta: null }));
  expect(read(json).ropeTheta).toBe(5000);
});

describe('refuses', () => {
  const cases: [Record<string, unknown>, RegExp][] = [
    [
      { rope_parameters: { ...llama3, ...original(64) }, ...original(128) },
      /"rope_parameters.original_max_position_embeddings" is 64 and "original_max_position_embeddings" is 128, which contra/,
    ],
    [
      { rope_parameters: { rope_theta: 1e4 }, rope_theta: 5e5 },
      /"rope_parameters.rope_theta" is 10000 and "rope_theta" is 5/,
    ],
    [
      { rope_scaling: { type: 'linear', rope_type: 'llama3', factor: 2 } },
      /"rope_scaling.type" is "linear", which contra/,
    ],
    [
      { rope_parameters: {}, rope_scaling: llama3 },
      /"rope_parameters" is \{\} and "rope_scaling" is \{"rope_type":"llama3"/,
    ],
    [
      { rope_parameters: { full_attention: llama3 } },
      /"rope_parameters" has "full_attention", which RoPE of type "default"/,
    ],
    [
      { rope_scaling: { type: 'linear', factor: 2, beta_fast: 32 } },
      /"rope_scaling" has "beta_fast", which RoPE .* "linear"/,
    ],
    [
      { rope_scaling: { rope_type: 'default', factor: 2 } },
      /"rope_scaling" has "factor", which RoPE of type "default"/,
    ],
    [{ rope_scaling: { rope_type: 'toString' } }, /RoPE of type "toString" \("rope_scaling"\) is not supported/],
  ];
  test.each(cases)('%j', (json, message) => {
    expect(() => read(json)).toThrow(message);
    expect(() => read(json)).toThrow(UserError);
  });
});
