/** Sweeps of a comparison: every variant with every value of an option. */
import { InvalidArgumentError } from '@commander-js/extra-typings';
import { UserError } from '../lib/errors.ts';

/** An option of the runs, without its dashes, and the values that it takes in turn. */
export type Sweep = { option: string; values: string[] };

/** What separates sweeps that are given together: the values of one are separated in the same way. */
const BETWEEN = /,(?=(?:--)?[a-z][a-z-]*=)/;

/** The text of a sweep, as in learning-rate=1e-4,1e-3; undefined if it is none. */
function read(text: string): Sweep | undefined {
  const [, option, list] = /^(?:--)?([a-z][a-z-]*)=(\S+)$/.exec(text.trim()) ?? [];
  const values = list?.split(',');
  return option === undefined || !values?.every(Boolean) ? undefined : { option, values };
}

/** Those whose texts {@link sweepTexts} has checked. */
export const sweepsOf = (texts: string[]): Sweep[] => texts.flatMap((text) => read(text) ?? []);

/** Parses `--sweep`, which may be given several times. @returns a text for each sweep so far */
export function sweepTexts(text: string, before: string[] = []): string[] {
  const swept = new Set(sweepsOf(before).map(({ option }) => option));
  const texts = text.split(BETWEEN).map((one) => {
    const found = read(one);
    if (!found) {
      throw new InvalidArgumentError('it must be an option and its values, as in learning-rate=1e-4,1e-3');
    }
    const { option, values } = found;
    const twice = values.find((value, i) => values.indexOf(value) !== i);
    if (twice !== undefined) throw new InvalidArgumentError(`'${twice}' occurs twice`);
    if (swept.has(option)) throw new InvalidArgumentError(`${option} is swept twice`);
    swept.add(option);
    return `${option}=${values}`;
  });
  return [...before, ...texts];
}

/** A line of the report: variants that differ in the first sweep alone, in the order of its values. */
export type Line = { name: string; variants: string[] };

/**
 * Every experiment with every combination of the swept values.
 * @param runOptions - what all runs are given besides
 * @returns a line for each experiment and each combination of all sweeps but the first
 * @throws {UserError} if an experiment, or every run, has an option already that is swept
 */
export function linesOf(experiments: string[], [first, ...others]: Sweep[], runOptions: string[] = []): Line[] {
  for (const { option } of [first, ...others]) {
    if (runOptions.some((word) => word.split('=')[0] === `--${option}`)) {
      throw new UserError(`--${option} is swept, and all runs have a value of their own: leave out one of the two`);
    }
    const both = experiments.find((name) => name.split(/[ =]/).includes(`--${option}`));
    if (both)
      throw new UserError(`--${option} is swept, and '${both}' has a value of its own: leave out one of the two`);
  }
  const withAll = (names: string[], { option, values }: Sweep) =>
    names.flatMap((name) => values.map((value) => `${name} --${option} ${value}`));
  return others.reduce(withAll, experiments).map((name) => ({ name, variants: withAll([name], first) }));
}
