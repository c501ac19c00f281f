/** RMSNorm: `y = w · x / √(mean(x²) + ε)` (Zhang & Sennrich 2019, eq. 4), and its gradient, in one pass over each row. */
import { address, dot, splat, sum4 } from '../wasm_simd';

/** `inverse` receives `1 / √(mean(x²) + ε)` of each row, for the gradient. */
export function rmsNorm(
  x: usize,
  weight: usize,
  y: usize,
  inverse: usize,
  width: i32,
  epsilon: f32,
  begin: i32,
  end: i32,
): void {
  x = address(x, begin * width);
  y = address(y, begin * width);
  for (let row = begin; row < end; row++) {
    const inverseRms: f32 = 1 / sqrt<f32>(dot(x, x, width) / <f32>width + epsilon);
    store<f32>(inverse + ((<usize>row) << 2), inverseRms);
    const factor = splat(inverseRms);
    let i = 0;
    for (; i + 4 <= width; i += 4) {
      const at = (<usize>i) << 2;
      v128.store(y + at, f32x4.mul(f32x4.mul(v128.load(x + at), factor), v128.load(weight + at)));
    }
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      store<f32>(y + at, load<f32>(x + at) * inverseRms * load<f32>(weight + at));
    }
    x += (<usize>width) << 2;
    y += (<usize>width) << 2;
  }
}

/**
 * With n = x · inverse and g = dy · w: `dx = inverse · (g − n · mean(g · n))`, `dw = Σ dy · n` over these rows.
 * @param dw - receives the sums of a piece of `grain` rows each, one after the other
 */
export function rmsNormGrad(
  dy: usize,
  x: usize,
  weight: usize,
  inverse: usize,
  dx: usize,
  dw: usize,
  width: i32,
  grain: i32,
  begin: i32,
  end: i32,
): void {
  dw = address(dw, (begin / grain) * width);
  memory.fill(dw, 0, (<usize>width) << 2);
  dy = address(dy, begin * width);
  x = address(x, begin * width);
  dx = address(dx, begin * width);
  for (let row = begin; row < end; row++) {
    const inverseRms = load<f32>(inverse + ((<usize>row) << 2));
    const factor = splat(inverseRms);
    let sum = splat(0);
    let i = 0;
    for (; i + 4 <= width; i += 4) {
      const at = (<usize>i) << 2;
      const product = f32x4.mul(v128.load(dy + at), f32x4.mul(v128.load(x + at), factor));
      v128.store(dw + at, f32x4.add(v128.load(dw + at), product));
      sum = f32x4.add(sum, f32x4.mul(product, v128.load(weight + at)));
    }
    let projection = sum4(sum);
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      const product = load<f32>(dy + at) * load<f32>(x + at) * inverseRms;
      store<f32>(dw + at, load<f32>(dw + at) + product);
      projection += product * load<f32>(weight + at);
    }
    const share: f32 = (projection / <f32>width) * inverseRms;
    const shares = splat(share);
    for (i = 0; i + 4 <= width; i += 4) {
      const at = (<usize>i) << 2;
      const g = f32x4.mul(v128.load(dy + at), v128.load(weight + at));
      v128.store(dx + at, f32x4.mul(factor, f32x4.sub(g, f32x4.mul(v128.load(x + at), shares))));
    }
    for (; i < width; i++) {
      const at = (<usize>i) << 2;
      const g = load<f32>(dy + at) * load<f32>(weight + at);
      store<f32>(dx + at, inverseRms * (g - load<f32>(x + at) * share));
    }
    dy += (<usize>width) << 2;
    x += (<usize>width) << 2;
    dx += (<usize>width) << 2;
  }
}

/** `y = Σ x` over the rows of x, one after the other, for these columns. */
export function addRows(x: usize, y: usize, rows: i32, width: i32, begin: i32, end: i32): void {
  const bytes = <usize>width << 2;
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    let sum = splat(0);
    let from = address(x, i);
    for (let row = 0; row < rows; row++) {
      sum = f32x4.add(sum, v128.load(from));
      from += bytes;
    }
    v128.store(address(y, i), sum);
  }
  for (; i < end; i++) {
    let sum: f32 = 0;
    let from = address(x, i);
    for (let row = 0; row < rows; row++) {
      sum += load<f32>(from);
      from += bytes;
    }
    store<f32>(address(y, i), sum);
  }
}
