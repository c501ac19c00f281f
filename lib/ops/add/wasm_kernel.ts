/** Sums number by number. */

/** `y = a + b` */
export function add(a: usize, b: usize, y: usize, begin: i32, end: i32): void {
  let i = begin;
  for (; i + 4 <= end; i += 4) {
    const at = (<usize>i) << 2;
    v128.store(y + at, f32x4.add(v128.load(a + at), v128.load(b + at)));
  }
  for (; i < end; i++) {
    const at = (<usize>i) << 2;
    store<f32>(y + at, load<f32>(a + at) + load<f32>(b + at));
  }
}
