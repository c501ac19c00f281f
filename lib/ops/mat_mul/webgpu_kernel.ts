/**
 * Matrix products of a batch, `C = op(A) op(B)`, where neither operand is transposed beforehand: one kernel for many tiles
 * of C, one for few.
 */
import { wgsl } from '../wgsl.ts';

const range = (n: number) => Array.from({ length: n }, (_, i) => i);

/** Where a number of op(A) (m × k) or op(B) (k × n) lies, and whether its row is the quicker index. */
type Transposed = { a: boolean; b: boolean };
const A = (row: string, k: string, { a }: Transposed) => (a ? `(${k}) * u.m + ${row}` : `(${row}) * u.k + ${k}`);
const B = (k: string, column: string, { b }: Transposed) =>
  b ? `(${column}) * u.k + ${k}` : `(${k}) * u.n + ${column}`;

const NUMBERS = { m: 'u32', n: 'u32', k: 'u32', across: 'u32', tiles: 'u32' } as const;

/** Rows and columns of a tile of {@link tiledProduct}. */
export const TILE = 64;

/**
 * A workgroup a tile of 64 × 64, a thread 8 × 8 of it: sixteen numbers that it takes from shared memory serve 64
 * multiply-adds. Rows and columns of a tile travel there sixteen steps of k at a time.
 */
export const tiledProduct = (transposed: Transposed) =>
  wgsl({
    name: `tiledProduct${transposed.a ? 'T' : 'N'}${transposed.b ? 'T' : 'N'}`,
    inputs: { a: 'f32', b: 'f32' },
    outputs: { c: 'f32' },
    numbers: NUMBERS,
    threads: 64,
    source: `
const STEPS = 16u;
// By k, then by four rows of A or columns of B.
var<workgroup> rowsOfA: array<vec4f, 256>;
var<workgroup> columnsOfB: array<vec4f, 256>;
fn numberOfA(base: u32, row: u32, k: u32) -> f32 {
  if (row >= u.m || k >= u.k) { return 0; }
  return a[base + ${A('row', 'k', transposed)}];
}
fn numberOfB(base: u32, k: u32, column: u32) -> f32 {
  if (column >= u.n || k >= u.k) { return 0; }
  return b[base + ${B('k', 'column', transposed)}];
}
fn put(base: u32, row: u32, column: u32, values: vec4f) {
  if (row >= u.m) { return; }
  for (var i = 0u; i < 4u; i++) {
    if (column + i < u.n) { c[base + row * u.n + column + i] = values[i]; }
  }
}
fn kernel(group: u32, thread: u32) {
  let batch = group / u.tiles;
  let tile = group % u.tiles;
  let row = tile / u.across * ${TILE};
  let column = tile % u.across * ${TILE};
  let baseA = batch * u.m * u.k;
  let baseB = batch * u.k * u.n;
  let ownRow = thread / 8;
  let ownColumn = thread % 8;
${range(8)
  .map((r) => `  var left${r} = vec4f(); var right${r} = vec4f();`)
  .join('\n')}
  for (var begin = 0u; begin < u.k; begin += STEPS) {
    for (var i = thread; i < 256u; i += THREADS) {
      // Neighbouring threads read what lies side by side.
      ${transposed.a ? 'let ka = i / 16; let four = i % 16;' : 'let ka = i % 16; let four = i / 16;'}
      ${transposed.b ? 'let kb = i % 16; let fourB = i / 16;' : 'let kb = i / 16; let fourB = i % 16;'}
      rowsOfA[ka * 16 + four] = vec4f(${range(4)
        .map((j) => `numberOfA(baseA, row + 4 * four + ${j}, begin + ka)`)
        .join(', ')});
      columnsOfB[kb * 16 + fourB] = vec4f(${range(4)
        .map((j) => `numberOfB(baseB, begin + kb, column + 4 * fourB + ${j})`)
        .join(', ')});
    }
    workgroupBarrier();
    for (var k = 0u; k < STEPS; k++) {
      let a0 = rowsOfA[k * 16 + 2 * ownRow];
      let a1 = rowsOfA[k * 16 + 2 * ownRow + 1];
      let b0 = columnsOfB[k * 16 + 2 * ownColumn];
      let b1 = columnsOfB[k * 16 + 2 * ownColumn + 1];
${range(8)
  .map((r) => {
    const factor = `a${r >> 2}[${r & 3}]`;
    return `      left${r} += ${factor} * b0; right${r} += ${factor} * b1;`;
  })
  .join('\n')}
    }
    workgroupBarrier();
  }
  let base = batch * u.m * u.n;
${range(8)
  .map((r) => {
    const [at, from] = [`row + 8 * ownRow + ${r}`, 'column + 8 * ownColumn'];
    return `  put(base, ${at}, ${from}, left${r}); put(base, ${at}, ${from} + 4, right${r});`;
  })
  .join('\n')}
}`,
  });

/** Rows and columns of a tile of {@link splitProduct}. */
export const SMALL_TILE = 8;

/**
 * What the threads of a workgroup do for a tile of 8 × 8: each adds up its steps of k for all results, and then one result
 * over all threads, which is `total`. The source must have room for `partial`: see {@link PARTIAL}.
 * @param numbersOfB - by a condition that holds for a whole workgroup: `B[k, column + i]` in WGSL
 */
export const splitOverK = (numberOfA: (row: number) => string, numbersOfB: Record<string, (i: number) => string>) => `
${range(16)
  .map((i) => `  var sum${i} = vec4f();`)
  .join('\n')}
${Object.entries(numbersOfB)
  .map(([condition, numberOfB]) => {
    const vector = (half: number) => range(4).map((i) => numberOfB(4 * half + i));
    return `  if (${condition}) {
    for (var k = thread; k < u.k; k += THREADS) {
      let b0 = vec4f(${vector(0).join(', ')});
      let b1 = vec4f(${vector(1).join(', ')});
${range(8)
  .map((r) => `      { let x = ${numberOfA(r)}; sum${2 * r} += x * b0; sum${2 * r + 1} += x * b1; }`)
  .join('\n')}
    }
  }`;
  })
  .join('\n')}
${range(16)
  .map((i) => `  partial[thread * 16 + (${i}u ^ (thread & 15))] = sum${i};`)
  .join('\n')}
  workgroupBarrier();
  // A thread a result: of vector thread / 4, which is half a row, number thread % 4. Vectors of different threads change
  // places so that no two threads ask the same bank of shared memory.
  var total = 0.0;
  for (var t = 0u; t < THREADS; t++) { total += partial[t * 16 + ((thread / 4) ^ (t & 15))][thread % 4]; }
`;

export const PARTIAL = 'var<workgroup> partial: array<vec4f, 1024>;';

/**
 * A workgroup a tile of 8 × 8, whose threads share the steps of k: enough of them are busy even where C is small, as it is
 * when a few tokens go through a layer, or the gradient of its weights comes from many. Indices beyond the end read the last
 * row or column again, which nobody puts anywhere.
 */
export const splitProduct = (transposed: Transposed) =>
  wgsl({
    name: `splitProduct${transposed.a ? 'T' : 'N'}${transposed.b ? 'T' : 'N'}`,
    inputs: { a: 'f32', b: 'f32' },
    outputs: { c: 'f32' },
    numbers: NUMBERS,
    threads: 64,
    source: `
${PARTIAL}
fn kernel(group: u32, thread: u32) {
  let batch = group / u.tiles;
  let tile = group % u.tiles;
  let row = tile / u.across * ${SMALL_TILE};
  let column = tile % u.across * ${SMALL_TILE};
  let baseA = batch * u.m * u.k;
  let baseB = batch * u.k * u.n;
  ${splitOverK((r) => `a[baseA + ${A(`min(row + ${r}, u.m - 1)`, 'k', transposed)}]`, {
    true: (i) => `b[baseB + ${B('k', `min(column + ${i}, u.n - 1)`, transposed)}]`,
  })}
  let ownRow = row + thread / 8;
  let ownColumn = column + thread % 8;
  if (ownRow < u.m && ownColumn < u.n) { c[batch * u.m * u.n + ownRow * u.n + ownColumn] = total; }
}`,
  });
