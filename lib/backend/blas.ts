/** CBLAS through koffi: single-precision matrix products in a library that the machine has. */
import { UserError } from '../errors.ts';

/** `C = A B` over row-major matrices; pointers are views whose first byte is the matrix's first. */
type Sgemm = (
  transposeA: boolean,
  transposeB: boolean,
  sizes: { m: number; n: number; k: number },
  a: Uint8Array,
  b: Uint8Array,
  c: Uint8Array,
) => void;

export type Blas = { name: string; sgemm: Sgemm };

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

/**
 * Loads the first CBLAS found.
 * @returns null if the machine has none
 * @throws {UserError} if `BLAS_LIBRARY` names a library that cannot be loaded or has no `cblas_sgemm`
 */
export async function loadBlas(): Promise<Blas | null> {
  const wanted = process.env.BLAS_LIBRARY;
  const candidates = wanted ? [wanted] : (CANDIDATES[process.platform] ?? []);
  // An optional speed-up must not stop a run on a platform that koffi has no binary for.
  const koffi = await import('koffi').then(
    (module) => module.default,
    () => null,
  );
  for (const name of koffi ? candidates : []) {
    try {
      const gemm = koffi!
        .load(name)
        .func(
          'void cblas_sgemm(int order, int transA, int transB, int m, int n, int k, float alpha, void *a, int lda, void *b, int ldb, float beta, void *c, int ldc)',
        );
      const sgemm: Sgemm = (transposeA, transposeB, { m, n, k }, a, b, c) =>
        gemm(
          ROW_MAJOR,
          transposeA ? TRANSPOSE : NO_TRANSPOSE,
          transposeB ? TRANSPOSE : NO_TRANSPOSE,
          m,
          n,
          k,
          1,
          a,
          transposeA ? m : k,
          b,
          transposeB ? k : n,
          0,
          c,
          n,
        );
      return { name, sgemm };
    } catch (error) {
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
