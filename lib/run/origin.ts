/** What a run was started from: its config.json keeps that, so that `--resume` goes on with the same. */
import { existsSync } from 'node:fs';
import { isAbsolute, join, relative } from 'node:path';
import { filesOf } from '../checkpoint/checkpoint.ts';
import { ADAPTER_FILES } from '../checkpoint/lora_files.ts';
import type { Located, ModelPlace } from '../checkpoint/pretrained.ts';
import { UserError } from '../errors.ts';
import { hashFile } from '../hashes.ts';
import { isObject } from '../json.ts';

/** What is known of the run that is to be resumed. */
type StartedFrom = { folder: string; formerFolder?: string; origin?: Origin; options: Record<string, unknown> };

/** The model, and the adapter on top of it if the run was started from one; and other models on which it depends. */
export type Origin = { model: Source; adapter?: Source; others?: Source[] };

/** A folder or `owner/name@commit`, and the SHA-256 of each of its files that counts. */
type Source = { name: string; files: Record<string, string> };

/**
 * What there is now, where models were found.
 * @param others - a reward model, say
 */
export async function originOf({ adapter, ...model }: Located, others: ModelPlace[] = []): Promise<Origin> {
  const source = async ({ folder, name }: ModelPlace, files: string[]): Promise<Source> => {
    const hashes: Record<string, string> = {};
    for (const file of files) hashes[file] = await hashFile(join(folder, file));
    return { name, files: hashes };
  };
  const whole = async (model: ModelPlace) => source(model, await filesOf(model.folder));
  const origin = {
    model: await whole(model),
    ...(others.length > 0 && { others: await Promise.all(others.map(whole)) }),
  };
  return adapter ? { ...origin, adapter: await source(adapter, ADAPTER_FILES) } : origin;
}

/** Whether a value of config.json is an {@link Origin}. */
export const isOrigin = (value: unknown): value is Origin =>
  isObject(value) &&
  isSource(value.model) &&
  (value.adapter === undefined || isSource(value.adapter)) &&
  (value.others === undefined || (Array.isArray(value.others) && value.others.every(isSource)));

const isSource = (value: unknown): value is Source =>
  isObject(value) &&
  typeof value.name === 'string' &&
  isObject(value.files) &&
  Object.values(value.files).every((hash) => typeof hash === 'string');

/**
 * The name of a run's model, as `locatePretrained` takes it. Of the hub, it is the commit that the run was started from; a
 * folder is also looked for where it now lies as seen from the run's folder, if both were moved together.
 * @throws {UserError} if it is nowhere
 * @param modelName - as the options have it: another name than the run had is taken as it is
 */
export function modelOf(found: StartedFrom | undefined, modelName: string): { name: string; base?: string } {
  if (!found?.origin || modelName !== found.options.modelName) return { name: modelName };
  const { folder, formerFolder = folder, origin } = found;
  const nameOf = ({ name }: Source, given = name): string => {
    if (!isAbsolute(name)) return name;
    const path = [given, name, join(folder, relative(formerFolder, name))].find((path) => existsSync(path));
    if (path !== undefined) return path;
    throw new UserError(`${folder} was started from ${name}, which is no longer there: name it with --model-name`);
  };
  const { model, adapter } = origin;
  return adapter ? { name: nameOf(adapter, modelName), base: nameOf(model) } : { name: nameOf(model, modelName) };
}

/**
 * Refuses to continue a run with another model than it was started from, wherever that lies.
 * @param now - what was found
 * @throws {UserError} naming the file that differs
 */
export function refuseOtherModel({ folder, origin, options }: StartedFrom, now: Origin, modelName: string): void {
  if (!origin) return;
  const remedy =
    modelName === options.modelName
      ? 'put back what was there, or name a folder that has it with --model-name'
      : 'leave out --model-name, or start a new run';
  for (const part of ['adapter', 'model'] as const) {
    const other = differingFile(origin[part], now[part]);
    if (other === undefined) continue;
    const was = (origin.adapter ?? origin.model).name;
    throw new UserError(
      `${modelName} is not what ${folder} was started from (${was}): its ${other} differs; ${remedy}`,
    );
  }
  for (const [i, before] of (origin.others ?? []).entries()) {
    const other = differingFile(before, now.others?.[i]);
    if (other === undefined) continue;
    throw new UserError(
      `${folder} depends on ${before.name}, whose ${other} is no longer what it was: put it back, or start a new run`,
    );
  }
}

/** The first file in which two models differ. */
function differingFile(before: Source | undefined, after: Source | undefined): string | undefined {
  const files = new Set([...Object.keys(before?.files ?? {}), ...Object.keys(after?.files ?? {})]);
  return [...files].find((file) => before?.files[file] !== after?.files[file]);
}
