import { onWasm } from '../on_wasm.ts';
import { pieces } from '../thread_pool.ts';
import { gatherRows } from './move_rows.ts';

export const moveRowsOnWasm = [
  onWasm(gatherRows, ([x, index], { run, output }) => {
    const [limit, width] = x.shape;
    const [count] = index.shape;
    const y = output([count, width]);
    run.gatherRows({ x, index, y, width, limit }, pieces(count, width));
    return [y];
  }),
];
