/** Data sets of the Hugging Face hub, in the cache that Python's huggingface_hub keeps. */
import { existsSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { downloadFileToCacheDir, getHFHubCachePath, getRepoFolderName } from '@huggingface/hub';
import { parquetReadObjects } from 'hyparquet';
import { hubEndpoint, isOffline, reasonOf } from '../checkpoint/download.ts';
import { UserError } from '../errors.ts';
import type { JsonObject } from '../json.ts';
import { oneLine } from '../text.ts';

/** Milliseconds that one answer of the hub may take, its file included. */
const PATIENCE = 120_000;

/**
 * Fetches a file of a public data set, unless the cache has it.
 * @param name - `owner/name`
 * @param path - within its repository
 * @returns where it lies
 * @throws {UserError} if it is not there, and the hub does not give it
 */
export async function datasetFile(name: string, path: string): Promise<string> {
  const cache = getHFHubCachePath();
  const snapshots = join(cache, getRepoFolderName({ type: 'dataset', name }), 'snapshots');
  const commits = existsSync(snapshots) ? readdirSync(snapshots) : [];
  const cached = commits.map((commit) => join(snapshots, commit, path)).find((file) => existsSync(file));
  if (cached) return cached;
  const { endpoint } = hubEndpoint();
  const nowhere = `${name}: ${path} is not in ${cache}`;
  const advice = 'check the connection, or name a copy of its files with --dataset';
  if (isOffline()) {
    throw new UserError(`${nowhere}, and HF_HUB_OFFLINE forbids asking the hub: ${advice}`);
  }
  console.log(`${name}: fetching ${path}`);
  const patient: typeof fetch = (url, init) => fetch(url, { ...init, signal: AbortSignal.timeout(PATIENCE) });
  const question = { repo: { type: 'dataset' as const, name }, path, hubUrl: endpoint, fetch: patient };
  return downloadFileToCacheDir(question).catch((error) => {
    throw new UserError(`${nowhere}, and ${endpoint} does not give it (${reasonOf(error)}): ${advice}`);
  });
}

/**
 * Reads the rows of a Parquet file.
 * @throws {UserError} if it is none
 */
export async function readParquet(file: string): Promise<JsonObject[]> {
  const bytes = await readFile(file);
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
  return parquetReadObjects({ file: buffer }).catch((error: Error) => {
    throw new UserError(`${file} cannot be read as Parquet: ${oneLine(error.message)}`);
  }) as Promise<JsonObject[]>;
}
