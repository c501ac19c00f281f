/** Which options of sampling beside training do not go together. */
import type { BackendName } from '../lib/backend/index.ts';
import { nvidiaGpus } from '../lib/backend/tensorflow.ts';
import { threadLimits } from '../lib/backend/threads.ts';
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
};

/** Whether a backend computes on a GPU here, as far as can be told beforehand. */
const usesGpu = async (backend: BackendName): Promise<boolean> =>
  backend === 'webgpu' || (backend !== 'wasm' && backend !== 'cpu' && (await nvidiaGpus()).length > 0);

/**
 * Refuses what cannot be done together; and divides the cores between the samplers and this process.
 * @throws {UserError} naming the options to change
 */
export async function checkAsync(options: AsyncOptions): Promise<void> {
  const { mode, lag, schedule, maxStaleness, weightSyncSteps, samplers, gpu, samplerGpu } = options;
  const alone = [
    mode === 'sync' && '--mode sync',
    lag !== undefined && '--lag',
    schedule !== undefined && '--schedule',
  ];
  const [first, second] = alone.filter((option) => option !== false);
  if (second) throw new UserError(`${first} and ${second} both say who samples: leave one of them out`);
  if (first) {
    const idle: [option: string, isGiven: boolean][] = [
      ['--samplers', samplers !== 1],
      ['--weight-sync-steps', weightSyncSteps !== 1],
      ['--in-flight', options.inFlight === true],
      ['--sampler-backend', options.samplerBackend !== undefined],
      ['--sampler-gpu', samplerGpu !== undefined],
      ['--sampler-threads', options.samplerThreads !== undefined],
      ['--share-gpu', options.shareGpu === true],
    ];
    const given = idle.find(([, isGiven]) => isGiven)?.[0];
    if (given) throw new UserError(`${given} is for samplers, of which ${first} has none: leave one of them out`);
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
