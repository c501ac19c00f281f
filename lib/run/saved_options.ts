/** Options as a run's folder keeps them, in JSON. */
import { isDeepStrictEqual } from 'node:util';
import { stringify } from 'yaml';
import { UserError } from '../errors.ts';

/** Options of one call of a script: a resumed run does not take them over. */
export const NOT_TAKEN_OVER = ['resume', 'config', 'outputDir'];

/** The options of a run, with the bundled data sets where they are now: runs of earlier versions name files in data/. */
export const withTasks = (options: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(options).map(([key, value]) => [
      key,
      typeof value !== 'string'
        ? value
        : value
            .replace(/^data\/encyclopedia\.jsonl$/, 'tasks/encyclopedia/corpus.jsonl')
            .replace(/^data\/(sums|products|choices|encyclopedia)_(train|test)\.jsonl$/, 'tasks/$1/$2.jsonl'),
    ]),
  );

/** batchSize, batch_size → batch-size */
export function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`).replaceAll('_', '-');
}

/** A value of JSON as it is written on a command line. */
export const asText = (value: unknown): string => {
  const text = (item: unknown) => (typeof item === 'object' ? JSON.stringify(item) : String(item));
  return [value].flat().map(text).join(',');
};

/** The options of a run as a file that `--config` takes: the same run again, in another folder. */
export function asConfigFile(options: Record<string, unknown>): string {
  const lines = Object.entries(options).map(([key, value]) => {
    const isLeftOut = NOT_TAKEN_OVER.includes(key) || value === undefined || value === null;
    const text = isLeftOut ? '' : asText(value);
    if (text !== '') return stringify({ [kebab(key)]: text }, { lineWidth: 0, defaultKeyType: 'PLAIN' });
    return isLeftOut || Array.isArray(value) ? '' : `# ${kebab(key)} is empty, which only a command line can say\n`;
  });
  return lines.join('');
}

/**
 * Refuses to continue a run with another value of an option that says what its metrics mean.
 * @param found - the run, and the options that it was started with
 * @param kept - names of such options
 * @throws {UserError} naming the first that differs
 */
export function refuseOtherOptions(
  { folder, options }: { folder: string; options: Record<string, unknown> },
  now: Record<string, unknown>,
  kept: string[],
): void {
  const other = kept.find((key) => key in options && !isDeepStrictEqual(now[key], options[key]));
  if (other === undefined) return;
  throw new UserError(
    `${folder} was run with --${kebab(other)} ${asText(options[other])}, and what it has measured depends on that: leave out --${kebab(other)} ${asText(now[other])}, or start a new run`,
  );
}

/**
 * What to say of options that are not those of the run before: one line, or none.
 * @param options.complete - whether `before` has all options: a run of an earlier version lacks those that came later
 */
export function changedOptions(
  before: Record<string, unknown>,
  now: Record<string, unknown>,
  { complete = true } = {},
): string[] {
  // As they are once they were saved.
  const saved: Record<string, unknown> = JSON.parse(JSON.stringify(now));
  const changed = Object.entries(saved).filter(([key, value]) => {
    const counts = !NOT_TAKEN_OVER.includes(key) && (complete || key in before);
    return counts && !isDeepStrictEqual(value, before[key]);
  });
  const list = changed.map(([key, value]) => {
    return `--${kebab(key)} ${asText(value)} (was ${key in before ? asText(before[key]) : 'not set'})`;
  });
  return list.length > 0 ? [`resuming with other options than before: ${list.join(', ')}`] : [];
}
