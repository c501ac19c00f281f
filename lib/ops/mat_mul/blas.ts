/** CBLAS through koffi: single-precision matrix products in a library that the machine has. */
import { UserError } from '../../errors.ts';

export type Blas = {
  name: string;
  /** Whether the user has named it. */
  named: boolean;
  /** The kernel `matMul` of wasm_kernel.ts, computed by the library on the memory of wasm. */
  matMulOn(memory: { readonly buffer: ArrayBufferLike }): (...args: number[]) => void;
};

/** Where OpenBLAS, MKL, BLIS and Apple's Accelerate are usually found; `BLAS_LIBRARY` overrides. */
const CANDIDATES: Partial<Record<NodeJS.Platform, string[]>> = {
  linux: ['libopenblas.so.0', 'libmkl_rt.so.2', 'libmkl_rt.so', 'libblis.so.4', 'libopenblas.so'],
  darwin: [
    '/System/Library/Frameworks/Accelerate.framework/Accelerate',
    '/opt/homebrew/opt/openblas/lib/libopenblas.dylib',
    '/usr/local/opt/openblas/lib/libopenblas.dylib',
  ],
  win32: ['libopenblas.dll', 'openblas.dll', 'mkl_rt.2.dll', 'mkl_rt.1.dll'],
};

const ROW_MAJOR = 101;
const NO_TRANSPOSE = 111;
const TRANSPOSE = 112;

/** OpenMP (some builds of OpenBLAS and BLIS), OpenBLAS, MKL, BLIS, Accelerate: read when the library is loaded. */
const THREADS = [
  'OMP_NUM_THREADS',
  'OPENBLAS_NUM_THREADS',
  'MKL_NUM_THREADS',
  'BLIS_NUM_THREADS',
  'VECLIB_MAXIMUM_THREADS',
];

/**
 * Loads the first CBLAS found, with one thread of its own: it is called from each of ours (thread_pool.ts).
 * @param known - the name of the one that another thread has found
 * @returns null if the machine has none
 * @throws {UserError} if `BLAS_LIBRARY` names a library that cannot be loaded or has no `cblas_sgemm`
 */
export async function loadBlas(known?: string): Promise<Blas | null> {
  const wanted = known ?? process.env.BLAS_LIBRARY;
  const candidates = wanted ? [wanted] : (CANDIDATES[process.platform] ?? []);
  // An optional speed-up must not stop a run on a platform that koffi has no binary for.
  const koffi = await import('koffi').then(
    (module) => module.default,
    () => null,
  );
  for (const name of koffi ? candidates : []) {
    try {
      for (const variable of THREADS) process.env[variable] = '1';
      const gemm = koffi!
        .load(name)
        .func(
          'void cblas_sgemm(int order, int transA, int transB, int m, int n, int k, float alpha, void *a, int lda, void *b, int ldb, float beta, void *c, int ldc)',
        );
      return { name, named: wanted !== undefined, matMulOn: (memory) => tiledBy(gemm, memory) };
    } catch (error) {
      if (known) throw new Error(`${known}: ${(error as Error).message}`);
      if (wanted) {
        const reason = error instanceof Error ? error.message : String(error);
        throw new UserError(
          `BLAS_LIBRARY=${wanted} cannot be used (${reason}): expected a shared library with cblas_sgemm; unset it to search the usual places, or pass --blas off`,
        );
      }
    }
  }
  if (wanted)
    throw new UserError(`BLAS_LIBRARY=${wanted} cannot be used: koffi, which calls it, does not run on this platform`);
  return null;
}

/** `C = op(A) op(B)` over row-major matrices, as CBLAS has it, with a view in place of each pointer. */
type Gemm = (
  order: number,
  transposeA: number,
  transposeB: number,
  ...rest: [
    ...[m: number, n: number, k: number],
    ...[alpha: number, a: Uint8Array, lda: number, b: Uint8Array, ldb: number],
    ...[beta: number, c: Uint8Array, ldc: number],
  ]
) => void;

function tiledBy(gemm: Gemm, memory: { readonly buffer: ArrayBufferLike }): (...args: number[]) => void {
  return (a, b, c, m, n, k, transposeA, transposeB, tileM, tileN, _scratch, _scratchSize, begin, end) => {
    const bytes = new Uint8Array(memory.buffer);
    const at = (base: number, index: number) => bytes.subarray(base + 4 * index);
    const [down, across] = [Math.ceil(m / tileM), Math.ceil(n / tileN)];
    for (let tile = begin; tile < end; tile++) {
      const product = Math.floor(tile / (down * across));
      const row = (Math.floor(tile / across) % down) * tileM;
      const column = (tile % across) * tileN;
      gemm(
        ROW_MAJOR,
        transposeA ? TRANSPOSE : NO_TRANSPOSE,
        transposeB ? TRANSPOSE : NO_TRANSPOSE,
        Math.min(tileM, m - row),
        Math.min(tileN, n - column),
        k,
        1,
        at(a, product * m * k + row * (transposeA ? 1 : k)),
        transposeA ? m : k,
        at(b, product * k * n + column * (transposeB ? k : 1)),
        transposeB ? k : n,
        0,
        at(c, product * m * n + row * n + column),
        n,
      );
    }
  };
}
