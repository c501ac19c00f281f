/** Ranks that an MPI launcher (mpirun, srun) has started, on one machine or many: MPI's C library, through koffi. */
import { availableParallelism, cpus } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { threadLimits } from '../backend/threads.ts';
import { UserError } from '../errors.ts';
import type { Rank } from './communicator.ts';
import { visibleDevice } from './local.ts';

/** How launchers number and count the processes: Open MPI, MPICH and Intel MPI, Slurm; all of them, or this machine's. */
const RANK_VARIABLES = ['OMPI_COMM_WORLD_RANK', 'PMI_RANK', 'PMIX_RANK'];
const SIZE_VARIABLES = ['OMPI_COMM_WORLD_SIZE', 'PMI_SIZE', 'SLURM_NTASKS'];
const LOCAL_RANK_VARIABLES = ['OMPI_COMM_WORLD_LOCAL_RANK', 'MPI_LOCALRANKID', 'SLURM_LOCALID'];
const LOCAL_SIZE_VARIABLES = ['OMPI_COMM_WORLD_LOCAL_SIZE', 'MPI_LOCALNRANKS', 'SLURM_TASKS_PER_NODE'];

const variable = (names: string[]): number | undefined => {
  const text = names.map((name) => process.env[name]).find((value) => value !== undefined);
  return text === undefined ? undefined : Number.parseInt(text, 10);
};

/** This process's number among those that an MPI launcher has started; undefined if none has. */
export const mpiRank = (): number | undefined => variable(RANK_VARIABLES);

/** Where Open MPI's and MPICH's libraries are usually found; `MPI_LIBRARY` overrides. */
const OPEN_MPI = ['libmpi.so.40', 'libmpi.so', 'libmpi.40.dylib', 'libmpi.dylib'];
const MPICH = ['libmpich.so.12', 'libmpi.so.12', 'libmpi.so', 'libmpi.12.dylib', 'libmpi.dylib'];

/** Handles: MPICH's (and Intel MPI's) are numbers of its ABI, Open MPI's are addresses of variables in the library. */
const MPICH_HANDLES = { world: 0x44000000, byte: 0x4c00010d, float: 0x4c00040a, sum: 0x58000003, inPlace: -1 };

/**
 * Connects a process that an MPI launcher has started. Calls block this process until all ranks have made them.
 * @throws {UserError} if there is no MPI library, or it is of another MPI than the launcher
 */
export async function connectMpi(): Promise<Rank> {
  const { path, library } = await loadLibrary();
  const handles = openMpiHandles(library) ?? MPICH_HANDLES;
  const handle = handles === MPICH_HANDLES ? 'int' : 'void *';
  const call = (signature: string) => {
    const run = library.func(signature);
    return (...args: unknown[]) => {
      const code = run(...args);
      if (code !== 0) throw new Error(`${signature.match(/MPI_\w+/)![0]} returned ${code}`);
    };
  };
  call('int MPI_Init(void *argc, void *argv)')(null, null);
  const allReduce = call(
    `int MPI_Allreduce(intptr_t sends, void *receives, int count, ${handle} type, ${handle} op, ${handle} comm)`,
  );
  const broadcast = call(`int MPI_Bcast(void *bytes, int count, ${handle} type, int root, ${handle} comm)`);
  const barrier = call(`int MPI_Barrier(${handle} comm)`);
  const number = (name: string) => {
    const result = [0];
    call(`int ${name}(${handle} comm, _Out_ int *number)`)(handles.world, result);
    return result[0];
  };
  const rank = number('MPI_Comm_rank');
  const size = number('MPI_Comm_size');
  const started = variable(SIZE_VARIABLES) ?? size;
  if (size !== started) {
    throw new UserError(
      `the launcher has started ${started} ranks, but to the MPI library ${path} there is ${size}: it is of another MPI, so name the launcher's own with MPI_LIBRARY`,
    );
  }
  const localRank = variable(LOCAL_RANK_VARIABLES) ?? rank;
  // A launcher that has bound this rank to some of the cores has divided them already.
  if (availableParallelism() === cpus().length) {
    Object.assign(process.env, threadLimits(variable(LOCAL_SIZE_VARIABLES) ?? 1));
  }
  process.env.CUDA_VISIBLE_DEVICES = visibleDevice(localRank);
  // Open MPI gives every rank a terminal of its own, wherever the output goes: lines are what suits both.
  process.stdout.isTTY = false;
  return {
    rank,
    size,
    allReduceSum: async (values) =>
      allReduce(handles.inPlace, values, values.length, handles.float, handles.sum, handles.world),
    broadcast: async (bytes) => broadcast(bytes, bytes.length, handles.byte, 0, handles.world),
    barrier: async () => barrier(handles.world),
    close: async () => call('int MPI_Finalize()')(),
    fail: async (message, exitCode) => {
      if (rank > 0) await sleep(600); // the same mistake stops all of them: rank 0 says so first
      console.error(`error: ${message}`);
      await sleep(300); // MPICH's launcher drops what it has not passed on by then
      call(`int MPI_Abort(${handle} comm, int code)`)(handles.world, exitCode);
    },
  };
}

async function loadLibrary() {
  // UCX, below MPICH and Open MPI, replaces malloc's system calls by its own to hear of memory that is given back. With
  // Node's many threads that is a race, which now and then loses a piece of the heap: 5 of 160 runs of MPICH 4.0 died.
  process.env.UCX_MEM_EVENTS ??= 'no';
  const { default: koffi } = await import('koffi');
  const usual = process.env.PMI_RANK === undefined ? [...OPEN_MPI, ...MPICH] : [...MPICH, ...OPEN_MPI];
  const candidates = process.env.MPI_LIBRARY ? [process.env.MPI_LIBRARY] : usual;
  for (const path of candidates) {
    try {
      return { path, library: koffi.load(path, { global: true }) }; // Open MPI's plug-ins look for global symbols
    } catch {}
  }
  throw new UserError(
    `started by an MPI launcher, but no MPI library can be loaded (tried ${candidates.join(', ')}): install that of the launcher (Debian: libopenmpi3 or libmpich12), or name it with MPI_LIBRARY`,
  );
}

/** Undefined if the library is not Open MPI's. */
function openMpiHandles(library: Awaited<ReturnType<typeof loadLibrary>>['library']) {
  const address = (name: string) => library.symbol(`ompi_mpi_${name}`);
  try {
    address('comm_world');
  } catch {
    return undefined;
  }
  const [world, byte, float, sum] = ['comm_world', 'byte', 'float', 'op_sum'].map(address);
  return { world, byte, float, sum, inPlace: 1 };
}
