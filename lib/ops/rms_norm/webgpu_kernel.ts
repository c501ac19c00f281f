/** RMSNorm: `y = w · x / √(mean(x²) + ε)` (Zhang & Sennrich 2019, eq. 4), and its gradient: a workgroup a row. */
import { wgsl } from '../wgsl.ts';

/** `inverse` receives `1 / √(mean(x²) + ε)` of each row, for the gradient. */
export const rmsNorm = wgsl({
  name: 'rmsNorm',
  inputs: { x: 'f32', weight: 'f32' },
  outputs: { y: 'f32', inverse: 'f32' },
  numbers: { width: 'u32', epsilon: 'f32' },
  threads: 64,
  source: `
fn kernel(row: u32, thread: u32) {
  let begin = row * u.width;
  var squares = 0.0;
  for (var i = thread; i < u.width; i += THREADS) { squares += x[begin + i] * x[begin + i]; }
  let inverseRms = 1 / sqrt(sumOfGroup(squares, thread) / f32(u.width) + u.epsilon);
  if (thread == 0) { inverse[row] = inverseRms; }
  for (var i = thread; i < u.width; i += THREADS) { y[begin + i] = x[begin + i] * inverseRms * weight[i]; }
}`,
});

/** With n = x · inverse and g = dy · w: `dx = inverse · (g − n · mean(g · n))`. */
export const rmsNormGrad = wgsl({
  name: 'rmsNormGrad',
  inputs: { dy: 'f32', x: 'f32', weight: 'f32', inverse: 'f32' },
  outputs: { dx: 'f32' },
  numbers: { width: 'u32' },
  threads: 64,
  source: `
fn kernel(row: u32, thread: u32) {
  let begin = row * u.width;
  let inverseRms = inverse[row];
  var products = 0.0;
  for (var i = thread; i < u.width; i += THREADS) {
    products += dy[begin + i] * weight[i] * x[begin + i] * inverseRms;
  }
  let share = sumOfGroup(products, thread) / f32(u.width) * inverseRms;
  for (var i = thread; i < u.width; i += THREADS) {
    dx[begin + i] = inverseRms * (dy[begin + i] * weight[i] - x[begin + i] * share);
  }
}`,
});

/** `dw = Σ dy · n` over each piece of `grain` rows: a thread a column of a piece. */
export const rmsNormWeightGrad = wgsl({
  name: 'rmsNormWeightGrad',
  inputs: { dy: 'f32', x: 'f32', inverse: 'f32' },
  outputs: { dw: 'f32' },
  numbers: { width: 'u32', rows: 'u32', grain: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let across = (u.width + THREADS - 1) / THREADS;
  let piece = group / across;
  let column = group % across * THREADS + thread;
  if (column >= u.width) { return; }
  var sum = 0.0;
  for (var row = piece * u.grain; row < min(u.rows, (piece + 1) * u.grain); row++) {
    sum += dy[row * u.width + column] * x[row * u.width + column] * inverse[row];
  }
  dw[piece * u.width + column] = sum;
}`,
});

/** `y = Σ x` over the rows of x: a thread a column. */
export const addRows = wgsl({
  name: 'addRows',
  inputs: { x: 'f32' },
  outputs: { y: 'f32' },
  numbers: { width: 'u32', rows: 'u32' },
  threads: 64,
  source: `
fn kernel(group: u32, thread: u32) {
  let column = group * THREADS + thread;
  if (column >= u.width) { return; }
  var sum = 0.0;
  for (var row = 0u; row < u.rows; row++) { sum += x[row * u.width + column]; }
  y[column] = sum;
}`,
});
