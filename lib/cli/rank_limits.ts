/** How many ranks a machine is asked for, before any is started. */
import { existsSync, readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { openSafetensors } from '../checkpoint/safetensors.ts';
import { UserError } from '../errors.ts';
import { machineMemory } from '../machine.ts';

/** Bytes that a rank takes before it has a model: Node, the backend, the data. */
const RANK_BYTES = 200e6;

/** The machine's cores and bytes of memory; those of the container, where that is smaller. */
const machine = () => ({ cores: availableParallelism(), memory: machineMemory() });

/**
 * Checks the number of ranks of one machine, and says so if they are more than its cores.
 * @param options.batchSize - prompts a step, which the ranks share
 * @param has - cores, and bytes of memory
 * @returns `options.nproc`
 * @throws {UserError} if there are more ranks than prompts, or if they need more memory than there is: of each, what it
 *   takes at least, with parameters, gradient and both moments in float32 (of an adapter's model, its parameters), where
 *   the model is a folder of this machine
 */
export async function checkRanks(
  { nproc, batchSize, modelName, loraRank }: { nproc: number; batchSize: number; modelName: string; loraRank: number },
  has = machine(),
): Promise<number> {
  if (nproc === 1) return nproc;
  if (nproc > batchSize) {
    throw new UserError(
      `--nproc ${nproc} is more than the ${batchSize} prompts of a step (--batch-size), which the ranks share: pass at most --nproc ${batchSize}`,
    );
  }
  const each = RANK_BYTES + 4 * (loraRank > 0 ? 1 : 4) * (await countParameters(modelName));
  if (nproc * each > has.memory) {
    const most = Math.max(1, Math.floor(has.memory / each));
    throw new UserError(
      `--nproc ${nproc} needs at least ${gigabytes(nproc * each)} GB of memory, and there are ${gigabytes(has.memory)}: pass at most --nproc ${most}`,
    );
  }
  if (nproc > has.cores) {
    console.error(`warning: ${nproc} ranks share ${has.cores} cores: more ranks than cores make no step faster`);
  }
  return nproc;
}

/** The numbers in the weights of a folder; 0 if it is none, as the name of a model on the hub, or an adapter. */
async function countParameters(folder: string): Promise<number> {
  const files = existsSync(folder) ? readdirSync(folder).filter((name) => /^model.*\.safetensors$/.test(name)) : [];
  let count = 0;
  for (const name of files) {
    const file = await openSafetensors(join(folder, name));
    await file.close();
    for (const { shape } of file.tensors.values()) count += shape.reduce((a, b) => a * b, 1);
  }
  return count;
}

const gigabytes = (bytes: number): string => (bytes / 1e9).toFixed(1);
