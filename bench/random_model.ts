/**
 * Writes a checkpoint with random weights in the shape of a model that people train, to measure with: nothing is fetched,
 * and nothing sensible is ever said by it.
 *
 *   node --import tsx bench/random_model.ts SmolLM2-135M runs/SmolLM2-135M
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { writeSafetensors } from '../lib/checkpoint/safetensors.ts';
import { runMain } from '../lib/cli/main.ts';
import { UserError } from '../lib/errors.ts';
import { parameterShapes, readConfig } from '../lib/model/config.ts';
import { normals } from '../lib/random.ts';

const llama = { architectures: ['LlamaForCausalLM'], model_type: 'llama', rope_theta: 100_000 };
const qwen = { architectures: ['Qwen2ForCausalLM'], model_type: 'qwen2', rope_theta: 1_000_000 };
const heads = (count: number, kv: number) => ({ num_attention_heads: count, num_key_value_heads: kv });
const size = (hidden: number, intermediate: number, layers: number, vocabulary: number) => ({
  ...{ hidden_size: hidden, intermediate_size: intermediate, num_hidden_layers: layers, vocab_size: vocabulary },
});

/** As in the `config.json` of the models of these names; `width-…`: one shape in several widths, for `npm run bench -- --sweep`. */
const SHAPES: Record<string, object> = {
  'TinyStories-656K': { ...llama, ...size(128, 384, 2, 2048), ...heads(8, 4), rope_theta: 10_000 },
  ...Object.fromEntries(
    [64, 128, 256, 512].map((width) => [
      `width-${width}`,
      { ...llama, ...size(width, 3 * width, 4, 512), ...heads(width / 32, width / 64) },
    ]),
  ),
  'SmolLM2-135M': { ...llama, ...size(576, 1536, 30, 49_152), ...heads(9, 3) },
  // Its layers, narrow: for `npm run bench:calls`, whose device has little memory.
  'SmolLM2-135M-narrow': { ...llama, ...size(72, 192, 30, 6144), ...heads(9, 3) },
  'SmolLM2-360M': { ...llama, ...size(960, 2560, 32, 49_152), ...heads(15, 5) },
  'Qwen2.5-0.5B': { ...qwen, ...size(896, 4864, 24, 151_936), ...heads(14, 2) },
  'Llama-3.2-1B': { ...llama, ...size(2048, 8192, 16, 128_256), ...heads(32, 8), head_dim: 64 },
  'SmolLM2-1.7B': { ...llama, ...size(2048, 8192, 24, 49_152), ...heads(32, 32) },
};

async function main(): Promise<void> {
  const [name, folder] = process.argv.slice(2);
  if (!Object.hasOwn(SHAPES, name ?? '') || !folder) {
    throw new UserError(`expected a shape (${Object.keys(SHAPES).join(', ')}) and a folder to write to`);
  }
  const parameters = await writeRandomModel(name, folder);
  console.log(`${folder}: ${(parameters / 1e6).toPrecision(3)} million parameters, bfloat16`);
}

/**
 * @param name - of {@link SHAPES}
 * @returns how many parameters the model has
 */
export async function writeRandomModel(name: string, folder: string): Promise<number> {
  mkdirSync(folder, { recursive: true });
  const common = {
    tie_word_embeddings: true,
    torch_dtype: 'bfloat16',
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-5,
  };
  writeFileSync(join(folder, 'config.json'), `${JSON.stringify({ ...SHAPES[name], ...common }, null, 2)}\n`);
  const block = normals(2 ** 20 - 3, 0).map((value) => 0.02 * value); // repeated: an odd length, so that rows differ
  const tensors = Object.entries(parameterShapes(await readConfig(folder))).map(([name, shape]) => ({
    name,
    dtype: 'BF16' as const,
    shape,
    data: async (begin: number, end: number) => {
      const norm = name.endsWith('norm.weight') ? 1 : 0;
      return Float32Array.from({ length: end - begin }, (_, i) =>
        shape.length === 1 ? norm : block[(begin + i) % block.length],
      );
    },
  }));
  await writeSafetensors(join(folder, 'model.safetensors'), tensors, { format: 'pt' });
  return tensors.reduce((sum, { shape }) => sum + shape[0] * (shape[1] ?? 1), 0);
}

await runMain(import.meta.url, main);
