/** Which options of sampling beside training do not go together. */
import type { BackendName } from '../lib/backend/index.ts';
import { nvidiaGpus } from '../lib/backend/tensorflow.ts';
import { threadLimits } from '../lib/backend/threads.ts';
import { isTyped } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';

type AsyncOptions = {
  mode: 'sync' | 'async';
  samplers: number;
  maxStaleness: number;
  weightSyncSteps: number;
  inFlight?: boolean | undefined;
  lag?: number | undefined;
  schedule?: string | undefined;
  loraRank: number;
  threads?: number | undefined;
  backend: BackendName;
  gpu?: string | undefined;
  samplerBackend?: BackendName | undefined;
  samplerGpu?: string | undefined;
  samplerThreads?: number | undefined;
  shareGpu?: boolean | undefined;
  klCoef: number;
  reference: 'trainer' | 'sampler';
  batchSize: number;
};

/** Who samples: what was typed counts more than what a file or the run before says. */
export function chosenMode<Options extends AsyncOptions>(options: Options): Options {
  const { mode, lag, schedule } = options;
  const ways = [
    ...(mode === 'sync' || isTyped('--mode') ? ['--mode'] : []),
    ...(lag === undefined ? [] : ['--lag']),
    ...(schedule === undefined ? [] : ['--schedule']),
  ];
  const typed = ways.filter((way) => isTyped(way));
  const [only, other] = typed.length > 0 ? typed : ways;
  if (other) throw new UserError(`${only} and ${other} both say who samples: leave one of them out`);
  return {
    ...options,
    mode: only === '--mode' ? mode : 'async',
    lag: only === '--lag' ? lag : undefined,
    schedule: only === '--schedule' ? schedule : undefined,
  };
}

/** Whether a backend computes on a GPU here, as far as can be told beforehand. */
const usesGpu = async (backend: BackendName): Promise<boolean> =>
  backend === 'webgpu' || (backend !== 'wasm' && backend !== 'cpu' && (await nvidiaGpus()).length > 0);

/** Options that are of no use in a run: what was typed is refused, what a file says is named. */
function leaveOut(options: [name: string, isGiven: boolean][], why: string): void {
  const typed = options.find(([name]) => isTyped(name));
  if (typed) throw new UserError(`${typed[0]} is ${why}: leave one of them out`);
  const given = options.filter(([, isGiven]) => isGiven).map(([name]) => name);
  if (given.length > 0) console.log(`not used here: ${given.join(', ')}, ${why}`);
}

/**
 * Refuses what cannot be done together; and divides the cores between the samplers and this process.
 * @param ranks - processes that a launcher of MPI has started; 1 if none has
 * @throws {UserError} naming the options to change
 */
export async function checkAsync(options: AsyncOptions, ranks: number): Promise<void> {
  const { mode, lag, schedule, maxStaleness, weightSyncSteps, samplers, gpu, samplerGpu } = options;
  const ofSamplers: [string, boolean][] = [
    ['--reference', options.reference !== 'trainer'],
    ['--sampler-backend', options.samplerBackend !== undefined],
    ['--sampler-gpu', samplerGpu !== undefined],
    ['--sampler-threads', options.samplerThreads !== undefined],
  ];
  const ofOwnSamplers: [string, boolean][] = [
    ['--samplers', samplers !== 1],
    ['--weight-sync-steps', weightSyncSteps !== 1],
    ['--in-flight', options.inFlight === true],
    ['--share-gpu', options.shareGpu === true],
  ];
  if (options.klCoef === 0) leaveOut([['--reference', false]], 'for a KL to it, of which --kl-coef 0 has none');
  const planned = mode === 'sync' ? '--mode sync' : lag !== undefined ? '--lag' : schedule && '--schedule';
  if (planned) {
    leaveOut(
      [['--max-staleness', maxStaleness !== 2], ...ofSamplers, ...ofOwnSamplers],
      `for samplers, of which ${planned} has none`,
    );
    if (ranks > 1) {
      throw new UserError(`${planned} samples in one process, and there are ${ranks} ranks: start it without mpirun`);
    }
    return;
  }
  if (ranks > 1) {
    leaveOut(ofOwnSamplers, `for samplers that a trainer starts, and ${ranks} ranks are there already`);
    if (maxStaleness > 1 && isTyped('--max-staleness')) {
      throw new UserError(`--max-staleness ${maxStaleness}: ranks sample no more than one step ahead: pass 0 or 1`);
    }
    if (ranks - 1 > options.batchSize) {
      throw new UserError(
        `${ranks - 1} ranks would share the ${options.batchSize} prompts of a batch: start at most ${options.batchSize + 1}, or raise --batch-size`,
      );
    }
    return;
  }
  if (weightSyncSteps > maxStaleness + 1) {
    throw new UserError(
      `--weight-sync-steps ${weightSyncSteps} lets weights grow ${weightSyncSteps - 1} steps old, more than --max-staleness ${maxStaleness} allows: lower it to ${maxStaleness + 1}, or raise --max-staleness`,
    );
  }
  if (options.inFlight && options.loraRank > 0) {
    throw new UserError(
      `--in-flight is for whole weights: an adapter (--lora-rank ${options.loraRank}) is merged into them before a batch is sampled`,
    );
  }
  const backend = options.samplerBackend ?? options.backend;
  const onGpu = await usesGpu(backend);
  if (samplerGpu !== undefined && !onGpu) {
    throw new UserError(
      `--sampler-gpu ${samplerGpu}: the backend ${backend} uses no GPU: leave it out, or pass --sampler-backend webgpu`,
    );
  }
  // An index and a name may be the same card: whoever has several says so.
  const isShared = onGpu && (samplers > 1 || ((await usesGpu(options.backend)) && gpu === samplerGpu));
  if (isShared && !options.shareGpu) {
    const who = samplers > 1 ? `${samplers} samplers` : 'samplers and trainer';
    throw new UserError(
      `${who} would share ${samplerGpu === undefined ? 'the first GPU' : `the GPU ${samplerGpu}`} (--backend ${backend}): give them others with --gpu and --sampler-gpu, let the samplers use --sampler-backend wasm, or say --share-gpu`,
    );
  }
  if (samplers > maxStaleness + 1) {
    console.log(
      `of ${samplers} samplers only ${maxStaleness + 1} have something to do at a time, because of --max-staleness ${maxStaleness}`,
    );
  }
  if (options.threads === undefined) Object.assign(process.env, threadLimits(1 + samplers));
}
