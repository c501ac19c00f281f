/** Starting a script as one rank or several, and ending all of them together. */
import { debuglog } from 'node:util';
import { type Communicator, type Rank, soloCommunicator } from '../distributed/communicator.ts';
import { connectLocal, isLocalRank, launchRanks } from '../distributed/local.ts';
import { connectMpi, mpiRank } from '../distributed/mpi.ts';
import { mistakeIn, UserError } from '../errors.ts';
import { releaseLocks } from '../run/lock.ts';
import { runMain } from './main.ts';

/** NODE_DEBUG=communicator shows what each rank waits for. */
const debug = debuglog('communicator');

/**
 * Runs a script's `main()` in every rank: those that an MPI launcher has started, else `nproc` processes of this machine.
 * A rank whose `main()` throws ends all of them; signals (Ctrl-C) are rank 0's business.
 * @param url - the script's `import.meta.url`
 * @param nproc - checks the command line and says how many local ranks it asks for; not called below an MPI launcher
 * @param options.stopped - seconds for which a local rank may be stopped (SIGSTOP) until all are ended
 */
export function runRanks(
  url: string,
  main: (communicator: Communicator) => Promise<void>,
  nproc: () => number | Promise<number>,
  options: { stopped?: number } = {},
): Promise<void> {
  return runMain(url, async () => {
    if (mpiRank() === undefined && !isLocalRank()) {
      if (Number(process.env.SLURM_STEP_NUM_TASKS) > 1) {
        throw new UserError(
          'Slurm has started several tasks, but without MPI between them: start them with `srun --mpi=pmix` (or another of `srun --mpi=list`)',
        );
      }
      const size = await nproc();
      return size > 1 ? launchRanks(size, options) : main(soloCommunicator());
    }
    const rank = mpiRank() === undefined ? connectLocal() : await connectMpi();
    if (rank.rank > 0) for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => {});
    try {
      await main(traced(rank));
      await rank.close();
    } catch (error) {
      releaseLocks(); // how ranks are ended leaves no time for it
      const mistake = mistakeIn(error);
      if (mistake === undefined) await rank.fail(`rank ${rank.rank}: ${(error as Error).stack}`, 1);
      else await rank.fail(mistake, 2);
    }
  });
}

function traced({ rank, ...communicator }: Rank): Communicator {
  const trace = async (what: string, call: Promise<void>) => {
    debug('rank %d waits: %s', rank, what);
    await call;
    debug('rank %d goes on: %s', rank, what);
  };
  return {
    ...communicator,
    rank,
    allReduceSum: (values) => trace(`sum of ${values.length} numbers`, communicator.allReduceSum(values)),
    broadcast: (bytes) => trace(`broadcast of ${bytes.length} bytes`, communicator.broadcast(bytes)),
    barrier: () => trace('barrier', communicator.barrier()),
  };
}
