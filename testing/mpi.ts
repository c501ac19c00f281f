/** For tests below a launcher of MPI. */
import { spawnSync } from 'node:child_process';
import { it } from 'vitest';

/** Starts so many ranks of what follows. */
export const mpirun = (ranks: number): string[] => ['mpirun', '--oversubscribe', '-np', String(ranks)];

/** Open MPI refuses to run as root, as in a container, unless told so. */
export const MPI = { OMPI_ALLOW_RUN_AS_ROOT: '1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: '1' };

/** A test that is skipped where there is no Open MPI. */
export const withMpi = spawnSync('mpirun', ['--version']).stdout?.includes('Open MPI') ? it : it.skip;
