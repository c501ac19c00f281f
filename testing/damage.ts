/** For tests: random damage to the last checkpoint of a run. */
import { cpSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { STEPS } from './runs.ts';

/** A draw below n, an integer. */
export type Draw = (n: number) => number;
export const pick = <T>(items: readonly T[], draw: Draw): T => items[draw(items.length)];

/** The checkpoint that is damaged. */
export const LAST = `checkpoint-${STEPS}`;

/** A copy of a run, to be damaged: its folder, its name, and the folder of all runs. */
type Copy = { folder: string; name: string; runs: string };

/** Each damages the last checkpoint of a run, and says what it did. */
export const DAMAGES: Record<string, (run: Copy, draw: Draw) => string> = {
  'a bit': ({ folder }, draw) => {
    const file = anyFile(folder, draw);
    const bytes = readFileSync(file);
    const position = draw(bytes.length);
    bytes[position] ^= 1 << draw(8);
    writeFileSync(file, bytes);
    return `byte ${position} of ${file}`;
  },
  'cut off, or with something behind it': ({ folder }, draw) => {
    const file = anyFile(folder, draw);
    const bytes = readFileSync(file);
    const changed =
      draw(3) === 0 ? Buffer.concat([bytes, bytes.subarray(0, 1 + draw(8))]) : bytes.subarray(0, draw(bytes.length));
    writeFileSync(file, changed);
    return `${changed.length} bytes of ${file}`;
  },
  'a file of another step, seed or experiment': ({ folder, name, runs }, draw) => {
    const file = anyFile(folder, draw);
    const others = [join(folder, 'checkpoint-2'), join(folder, 'checkpoint-4')];
    if (name !== 'adapter') others.push(join(runs, 'other seed', LAST), join(runs, 'other experiment', LAST));
    const other = join(pick(others, draw), relative(join(folder, LAST), file));
    cpSync(other, file);
    return `${other} as ${file}`;
  },
  'all files of another step, seed or experiment': ({ folder, runs }, draw) => {
    const other = join(
      pick([folder, join(runs, 'other seed'), join(runs, 'other experiment'), join(runs, 'adapter')], draw),
      `checkpoint-${pick([2, 4, 6], draw)}`,
    );
    const target = join(folder, `checkpoint-${pick([6, 8], draw)}`);
    if (draw(2) === 0) rmSync(target, { recursive: true, force: true });
    if (other !== target) cpSync(other, target, { recursive: true });
    return `${other} as ${target}`;
  },
  'two tensors exchanged': ({ folder }, draw) => {
    const file = pick(
      readdirSync(join(folder, LAST)).filter((file) => file.endsWith('.safetensors')),
      draw,
    );
    const bytes = readFileSync(join(folder, LAST, file));
    const end = 8 + Number(bytes.readBigUInt64LE());
    const header = JSON.parse(bytes.toString('utf8', 8, end));
    const entries = Object.entries(header).filter(([key]) => key !== '__metadata__') as [string, { shape: number[] }][];
    const [first, entry] = pick(entries, draw);
    const second =
      pick(
        entries.filter(([key, { shape }]) => key !== first && String(shape) === String(entry.shape)),
        draw,
      )?.[0] ?? first;
    [header[first], header[second]] = [header[second], header[first]];
    const text = Buffer.from(JSON.stringify(header).padEnd(end - 8));
    writeFileSync(join(folder, LAST, file), Buffer.concat([bytes.subarray(0, 8), text, bytes.subarray(end)]));
    return `${first} and ${second} in ${file}`;
  },
  'a value in JSON': ({ folder }, draw) => {
    const file =
      draw(3) > 0
        ? join(folder, LAST, 'training_state.json')
        : pick(
            allFiles(folder).filter((file) => file.endsWith('.json')),
            draw,
          );
    const json = JSON.parse(readFileSync(file, 'utf8'));
    let [parent, key] = [json, pick(Object.keys(json), draw)];
    while (
      typeof parent[key] === 'object' &&
      parent[key] !== null &&
      Object.keys(parent[key]).length > 0 &&
      draw(4) > 0
    ) {
      parent = parent[key];
      key = pick(Object.keys(parent), draw);
    }
    const old = parent[key];
    const strange = [
      null,
      true,
      -1,
      0,
      1.5,
      1e308,
      '',
      '6',
      [],
      {},
      [[6]],
      { a: 6 },
      String(old),
      `${old}0`,
      Number(old) + 1,
      [old],
    ];
    const value = pick(strange, draw);
    if (draw(5) === 0) delete parent[key];
    else parent[key] = value;
    writeFileSync(file, JSON.stringify(json));
    return `${key} = ${JSON.stringify(parent[key])} in ${file}`;
  },
  'a file less, or more': ({ folder, name, runs }, draw) => {
    if (draw(2) === 0) {
      const file = anyFile(folder, draw);
      rmSync(file);
      return `without ${file}`;
    }
    const from = pick(allFiles(join(runs, name === 'adapter' ? 'whole' : 'adapter')), draw);
    cpSync(from, join(folder, LAST, from.split('/').at(-1)!));
    return `with ${from}`;
  },
};

const allFiles = (folder: string) => readdirSync(join(folder, LAST)).map((file) => join(folder, LAST, file));
const anyFile = (folder: string, draw: Draw) => pick(allFiles(folder), draw);
