/** Modules of the user's own: a task, rewards. */
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { UserError } from './errors.ts';
import { oneLine } from './text.ts';

/** What any value that was thrown says. */
export const saidBy = (error: unknown): string => oneLine(error instanceof Error ? error.message : String(error));

/**
 * @param file - on this machine
 * @param named - what the user has called it, for messages
 * @throws {UserError} if it cannot be loaded
 */
export const importModule = (file: string, named: string): Promise<Record<string, unknown>> =>
  import(pathToFileURL(resolve(file)).href).catch((error) => {
    throw new UserError(`${named} cannot be loaded: ${saidBy(error)}`);
  });
