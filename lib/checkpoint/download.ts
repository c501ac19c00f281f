/** One file of the Hugging Face hub: asking for it, fetching it, and what the hub may answer instead. */
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, open, readdir, rename, rm, stat, statfs, symlink } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import querystring from 'node:querystring';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ReadableStream } from 'node:stream/web';
import { setTimeout as pause } from 'node:timers/promises';
import { HUB_URL } from '@huggingface/hub';
import { UserError } from '../errors.ts';
import { isRunning } from '../machine.ts';
import { cut, oneLine, shown } from '../text.ts';

/** Limits of time and size, so that no answer of a hub goes on for ever. */
export type HubLimits = {
  /** Milliseconds until a question must be answered, and in which a file must grow by `minBytes`. */
  patience: number;
  minBytes: number;
  /** Bytes that the answer to a question may have, on all its pages. */
  maxAnswer: number;
  /** Milliseconds between attempts to go on with a download, which must bring `minBytes` each. */
  pauses: number[];
};
export const HUB_LIMITS: HubLimits = { patience: 10_000, minBytes: 10_000, maxAnswer: 5e7, pauses: [1000, 3000, 9000] };

/**
 * A model of the hub: `folder` is where the cache keeps its blobs, refs and snapshots; `authorization` goes with requests to
 * the endpoint, and nowhere else.
 */
export type Repo = {
  name: string;
  id: string;
  revision: string;
  endpoint: string;
  folder: string;
  token: string;
  authorization: string;
  limits: HubLimits;
};

/** A file of the hub. `hash`, its name in the cache: SHA-256 if Git LFS stores it, else what Git calls the content. */
export type HubFile = { path: string; size: number; hash: string };

/** The hub gives no answer, or none that can be used; another time it may. The message says why. */
export class Unreachable extends Error {}

/**
 * The hub's URL, which HF_ENDPOINT may set. A user and a password in it are not part of what is returned, nor of any message.
 * @returns the URL without a slash at its end, and the HTTP header that user and password make
 * @throws {UserError} if HF_ENDPOINT is no such URL
 */
export function hubEndpoint(): { endpoint: string; authorization: string } {
  const given = process.env.HF_ENDPOINT || HUB_URL;
  const url = URL.canParse(given) ? new URL(given) : undefined;
  if (!url || !/^https?:$/.test(url.protocol) || url.search || url.hash) {
    const found = given.replace(/.*@/s, '***@').replace(/[?#].*/s, '?***');
    throw new UserError(`HF_ENDPOINT must be a URL such as ${HUB_URL}, found ${shown(found)}.`);
  }
  const user = querystring.unescape(`${url.username}:${url.password}`);
  url.username = url.password = '';
  const authorization = user === ':' ? '' : `Basic ${Buffer.from(user).toString('base64')}`;
  return { endpoint: url.href.replace(/\/+$/, ''), authorization };
}

export const sizeOf = async (file: string) => (await stat(file).catch(() => undefined))?.size;

export const shownSize = (bytes: number) => (bytes < 1e5 ? `${bytes} bytes` : `${(bytes / 1e6).toFixed(1)} MB`);

/**
 * Fetches a file. It grows in `<blob>.process-<pid>.incomplete`, where this process or a later one goes on after an
 * interruption, and gets its name when its hash is right. By plain HTTP, which the hub speaks for all files, also for
 * those in Xet; the library could start at an offset as well, but takes an answer from byte 0 for one from there.
 * @param showProgress - is told how many bytes of the file are there
 * @throws {UserError} if the connection keeps breaking off, the disk is full, or the content is not what was promised
 */
export async function download(
  repo: Repo,
  commit: string,
  file: HubFile,
  blob: string,
  showProgress: (bytes: number) => void,
): Promise<void> {
  const { path, size, hash } = file;
  const partial = await claimPartial(blob);
  const url = `${repo.endpoint}/${repo.id}/resolve/${commit}/${path}`;
  try {
    for (let isSecond = false; ; isSecond = true) {
      const isWhole = await collect(repo, url, file, { partial, blob, showProgress });
      const found = await contentHash(partial, hash.length);
      if (found === hash) return await rename(partial, blob);
      await rm(partial);
      if (isWhole || isSecond) {
        throw new UserError(
          `${repo.id}: ${path} arrived damaged and was not kept: its hash must be ${hash}, found ${found}; run again to fetch it anew.`,
        );
      } // else an earlier part may have been the bad one: once more, from the beginning
    }
  } catch (error) {
    // Of two that download the same file into the same place, one finds it moved away when it is done.
    if ((await sizeOf(blob)) !== size) throw error;
  }
}

/** Fetches what is missing of a file, in as many attempts as it takes. Returns whether one brought all of it. */
async function collect(
  repo: Repo,
  url: string,
  { path, size }: HubFile,
  { partial, blob, showProgress }: { partial: string; blob: string; showProgress: (bytes: number) => void },
): Promise<boolean> {
  const { minBytes, pauses } = repo.limits;
  const sizeSoFar = async () => (await sizeOf(partial)) ?? (await sizeOf(blob)) ?? 0;
  let have = await sizeSoFar();
  let isWhole = have === 0;
  const { bavail, bsize } = await statfs(dirname(partial));
  if (size - have > bavail * bsize) {
    throw new UserError(
      `${repo.id}: ${path} has ${shownSize(size)}, and the disk of ${repo.folder} has ${shownSize(bavail * bsize)} left; free some space, or set HF_HOME to a folder on another disk.`,
    );
  }
  for (let failures = 0; have < size; ) {
    const before = have;
    const error = await append(repo, url, partial, { have, size, showProgress }).catch((error) => error);
    if (error?.code === 'ENOSPC') {
      throw new UserError(
        `${partial}: the disk is full, ${path} has ${shownSize(size)}; free some space and run again.`,
      );
    }
    if (error instanceof UserError || error?.syscall) throw error;
    have = await sizeSoFar();
    if (have >= size) break;
    isWhole = false;
    failures = have >= before + minBytes ? 1 : failures + 1;
    if (failures > pauses.length) {
      const progress = `${shownSize(have)} of the ${shownSize(size)} of ${path}`;
      throw new UserError(
        `${repo.id}: the connection to ${repo.endpoint} keeps breaking off (${reasonOf(error)}) with ${progress}; run again, and it continues there.`,
      );
    }
    await pause(pauses[failures - 1]);
  }
  return isWhole;
}

/** Where this process collects a blob: it takes over what a process left that is no more. */
async function claimPartial(blob: string): Promise<string> {
  const partial = `${blob}.process-${process.pid}.incomplete`;
  for (const file of await readdir(dirname(blob))) {
    const [, owner, pid] = /^(\w+)\.process-(\d+)\.incomplete$/.exec(file) ?? [];
    const isFree = owner === basename(blob) && (await sizeOf(partial)) === undefined && !isRunning(Number(pid));
    if (isFree) await rename(join(dirname(blob), file), partial).catch(() => {}); // another may have been faster
  }
  await (await open(partial, 'a')).close();
  return partial;
}

/** Fetches what is missing of a file. Each byte goes to its own place, so that two who do so do no harm. */
async function append(
  repo: Repo,
  url: string,
  file: string,
  { have, size, showProgress }: { have: number; size: number; showProgress: (bytes: number) => void },
): Promise<void> {
  const { patience, minBytes } = repo.limits;
  let position = have;
  const abort = new AbortController();
  let seen = position;
  const watch = setInterval(() => {
    if (position < seen + minBytes) abort.abort(new Error(`fewer than ${minBytes} bytes in ${patience / 1000} s`));
    seen = position;
  }, patience);
  try {
    await (await open(file, 'a')).close();
    const range = have > 0 ? { range: `bytes=${have}-` } : undefined;
    const headers = { 'accept-encoding': 'identity', ...range };
    const response = await request(repo, url, { headers, signal: abort.signal });
    const start = response.status === 206 ? have : 0; // a server without ranges sends everything again
    position = seen = start;
    async function* count(chunks: AsyncIterable<Uint8Array>) {
      for await (const chunk of chunks) {
        position += chunk.length;
        showProgress(position);
        yield chunk;
        if (position > size) throw new Error('more was sent than announced');
      }
    }
    const body = Readable.fromWeb(response.body as ReadableStream<Uint8Array>);
    await pipeline(body, count, createWriteStream(file, { flags: 'r+', start, flush: true }));
    if (position < size) throw new Error('less was sent than announced');
  } finally {
    clearInterval(watch);
  }
}

/** SHA-256 of a file (64 digits), or its name as a Git blob (40 digits). */
async function contentHash(file: string, digits: number): Promise<string> {
  const hash = digits === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${await sizeOf(file)}\0`);
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest('hex');
}

/** Links a name in a snapshot to its blob, or copies it where there are no links. */
export async function linkTo(blob: string, pointer: string): Promise<void> {
  try {
    await symlink(relative(dirname(pointer), blob), pointer);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return; // it waited for the blob, or another was faster
    await link(blob, pointer).catch(() => copyFile(blob, pointer)); // Windows allows symbolic links to some users only
  }
}

/**
 * Fetches a URL, with the token if it is the endpoint's; where it is redirected to another host, `fetch` takes that away.
 * @throws {Unreachable} if it is worth trying again
 * @throws {UserError} if the hub refuses
 */
export async function request(repo: Repo, url: string, init: RequestInit): Promise<Response> {
  const { origin } = new URL(repo.endpoint);
  const headers = new Headers(init.headers);
  if (repo.authorization && new URL(url).origin === origin) headers.set('authorization', repo.authorization);
  const response = await fetch(url, { ...init, headers }).catch(asUnreachable);
  if (response.ok) return response;
  await response.body?.cancel();
  const isPassing = response.status >= 500 || [408, 429].includes(response.status);
  if (isPassing || new URL(response.url).origin !== origin) throw new Unreachable(`it answered ${response.status}`);
  throw new UserError(refusal(repo, response));
}

/** What the hub means by an answer, which it says in a header (the status alone does not tell). */
function refusal({ name, id, revision, endpoint, token }: Repo, { status, headers }: Response): string {
  const code = headers.get('x-error-code');
  const page = `${endpoint}/${id}`;
  if (code === 'RevisionNotFound')
    return `${name}: the hub has this model, but no revision "${revision}"; see ${page}.`;
  if (status === 401 && code === null && token) {
    return `${name}: ${endpoint} does not know your token; set HF_TOKEN to a valid one, or unset it.`;
  }
  if (code === 'GatedRepo' || status === 403 || (status === 401 && code === null)) {
    return token
      ? `${name}: this model is gated or private, and your token has no access; accept its conditions on ${page} with the token's account.`
      : `${name}: this model is gated or private; accept its conditions on ${page}, and set HF_TOKEN to a token of yours.`;
  }
  const advice = token ? 'check the name' : 'check the name, or set HF_TOKEN if the model is private';
  return `${name}: there is no such folder, and ${endpoint} has no such model (it answered ${status}); ${advice}.`;
}

/** Whether the environment forbids asking the hub. */
export const isOffline = (): boolean => /^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '');

/** Rethrows errors as {@link Unreachable}, unless they are a refusal of the hub. */
export function asUnreachable(error: unknown): never {
  throw error instanceof UserError || error instanceof Unreachable ? error : new Unreachable(reasonOf(error));
}

/** `fetch` hides the reason in the cause; a hub's answer that makes no sense is a SyntaxError, or a TypeError without cause. */
export function reasonOf(error: unknown): string {
  const { name, message, cause } = error as Error & { cause?: NodeJS.ErrnoException };
  if (name === 'TimeoutError') return 'it does not answer in time';
  if (name === 'SyntaxError' || (name === 'TypeError' && !cause)) return 'its answer is not that of a hub';
  return cut(oneLine(cause?.code ?? (cause?.message || message)), 200);
}
