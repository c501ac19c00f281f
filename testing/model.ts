/** For tests: a model so small that a step takes milliseconds. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../lib/checkpoint/safetensors.ts';
import { parameterShapes, readConfig } from '../lib/model/config.ts';
import { normals } from '../lib/random.ts';
import { TOKEN_IDS, VOCABULARY_SIZE, writeTokenizer } from '../models/tiny/tokenizer.ts';

/**
 * Writes a Llama with random weights that often says certain tokens, so that rewards differ and weights move.
 * @param options.favoured - ids of these tokens: <answer> and </answer>, unless said otherwise
 * @param options.bias - how strongly it favours them
 * @param options.context - tokens that a prompt and its completion may have together
 */
export async function writeTestModel(
  folder: string,
  { favoured = [7, 8], bias = 1.2, context = 64 } = {},
): Promise<void> {
  mkdirSync(folder);
  writeTokenizer(folder);
  const config = {
    ...{ architectures: ['LlamaForCausalLM'], model_type: 'llama', torch_dtype: 'float32', tie_word_embeddings: false },
    ...{ vocab_size: VOCABULARY_SIZE, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2 },
    ...{
      num_attention_heads: 4,
      num_key_value_heads: 2,
      max_position_embeddings: context,
      eos_token_id: TOKEN_IDS.eos,
    },
  };
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config));
  const tensors = Object.entries(parameterShapes(await readConfig(folder))).map(([name, shape], i) => {
    const data = normals(shape[0] * (shape[1] ?? 1), 0, i).map((value) => (shape.length === 1 ? 1 : 0.2 * value));
    // Column 0 is a constant input, and the LM head's column 0 thereby a bias: towards what it favours.
    for (let row = 0; row < shape[0]; row++) {
      if (name === 'model.embed_tokens.weight') data[row * shape[1]] = 1;
      if (name === 'lm_head.weight') data[row * shape[1]] = favoured.includes(row) ? bias : 0;
    }
    return { name, dtype: 'F32' as const, shape, data };
  });
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' });
}

/** Writes a data set of `size` sums, a line each. */
export function writeTestData(file: string, size: number): void {
  const problems = Array.from({ length: size }, (_, i) => JSON.stringify({ question: `${i}+1`, answer: i + 1 }));
  writeFileSync(file, problems.join('\n'));
}
