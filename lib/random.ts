/**
 * Random numbers without a state: every draw is a function of (seed, counters) and of nothing else, so that a batch may be
 * split, reordered or resumed and each row still draws the same numbers.
 *
 * The generator is Threefry-2x32 with 20 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 */

/** The two words of the last {@link encrypt}. Shared, because a draw should allocate nothing. */
const block = new Int32Array(2);

/** Encrypts the counter (c0, c1) with the key (k0, k1) into {@link block}: five times four rounds and a key injection. */
function encrypt(k0: number, k1: number, c0: number, c1: number): void {
  const k2 = 0x1bd11bda ^ k0 ^ k1;
  let x0 = (c0 + k0) | 0;
  let x1 = (c1 + k1) | 0;
  // Key words take turns: a, b of this injection are b, c of the one before.
  let a = k1;
  let b = k2;
  let c = k0 | 0;
  for (let i = 1; i <= 5; i++) {
    const odd = (i & 1) === 1; // the rotations of odd and of even groups of four rounds
    x0 = (x0 + x1) | 0;
    x1 = (odd ? (x1 << 13) | (x1 >>> 19) : (x1 << 17) | (x1 >>> 15)) ^ x0;
    x0 = (x0 + x1) | 0;
    x1 = (odd ? (x1 << 15) | (x1 >>> 17) : (x1 << 29) | (x1 >>> 3)) ^ x0;
    x0 = (x0 + x1) | 0;
    x1 = (odd ? (x1 << 26) | (x1 >>> 6) : (x1 << 16) | (x1 >>> 16)) ^ x0;
    x0 = (x0 + x1) | 0;
    x1 = (odd ? (x1 << 6) | (x1 >>> 26) : (x1 << 24) | (x1 >>> 8)) ^ x0;
    x0 = (x0 + a) | 0;
    x1 = (x1 + b + i) | 0;
    const first = a;
    a = b;
    b = c;
    c = first;
  }
  block[0] = x0;
  block[1] = x1;
}

/**
 * One block of Threefry-2x32-20.
 * @param key - two 32-bit words
 * @param counter - two 32-bit words
 * @returns two unsigned 32-bit words
 */
export function threefry2x32(key: [number, number], counter: [number, number]): [number, number] {
  encrypt(key[0], key[1], counter[0], counter[1]);
  return [block[0] >>> 0, block[1] >>> 0];
}

const TWO_32 = 2 ** 32;

/** Marks the last block of a draw: no safe integer has this upper word, so no longer tuple passes through that block. */
const LAST = 0x40000000;

/**
 * A uniform draw that depends only on its arguments. Different tuples, also of different length, draw independently.
 * @param seed - the seed of the run, an integer
 * @param counters - any integers that name this draw, for example step, prompt, sample, position
 * @returns a number in [0, 1) with 53 random bits
 * @throws {RangeError} if an argument is not a safe integer: a fraction would silently share its draw with another one
 */
export function uniform(seed: number, ...counters: number[]): number {
  if (!Number.isSafeInteger(seed)) throw new RangeError(`the seed must be an integer, found ${seed}`);
  block[0] = seed;
  block[1] = Math.floor(seed / TWO_32);
  for (let i = 0; i < counters.length; i++) {
    const counter = counters[i];
    if (!Number.isSafeInteger(counter)) throw new RangeError(`a counter must be an integer, found ${counter}`);
    encrypt(block[0], block[1], counter | 0, Math.floor(counter / TWO_32));
  }
  encrypt(block[0], block[1], 0, LAST);
  return ((block[0] >>> 5) * 2 ** 26 + (block[1] >>> 6)) * 2 ** -53;
}

/**
 * A random order of 0 … n-1 (Fisher–Yates), from the draws `uniform(seed, ...counters, i)`.
 * @param n - how many
 * @param seed - the seed of the run
 * @param counters - integers that name this permutation, for example the epoch
 */
export function permutation(n: number, seed: number, ...counters: number[]): number[] {
  const order = Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor(uniform(seed, ...counters, i) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

/**
 * Standard normal draws (Box–Muller), from the draws `uniform(seed, ...counters, i)`.
 * @param n - how many
 * @param seed - the seed of the run
 * @param counters - integers that name this vector, for example the number of a parameter
 */
export function normals(n: number, seed: number, ...counters: number[]): Float32Array {
  const values = new Float32Array(n);
  for (let i = 0; i < n; i += 2) {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform(seed, ...counters, i))); // 1 - u is never 0
    const angle = 2 * Math.PI * uniform(seed, ...counters, i + 1);
    values[i] = radius * Math.cos(angle);
    if (i + 1 < n) values[i + 1] = radius * Math.sin(angle);
  }
  return values;
}
