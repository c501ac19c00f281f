import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { copyFile, link, mkdir, open, readdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join, relative } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ReadableStream } from 'node:stream/web';
import { setTimeout as pause } from 'node:timers/promises';
import { getHFHubCachePath, getRepoFolderName, HUB_URL, listFiles, modelInfo } from '@huggingface/hub';
import { SingleBar } from 'cli-progress';
import { UserError } from '../run/errors.ts';
import { readJsonObject } from './config.ts';
import { oneLine, shown } from './json.ts';

/** `owner/name` or `name`, perhaps with `@revision`. Each becomes part of a path, so none may be `..`. */
const HUB_ID = /^(?!.*(?:--|\.\.))((?:\w[\w.-]*\/)?\w[\w.-]*)(?:@(\w[\w.-]*))?$/;
const COMMIT = /^[0-9a-f]{40}$/;
const SMALL_FILES =
  /^((adapter_|generation_)?config|tokenizer[\w.-]*|special_tokens_map|added_tokens|chat_template)\.json$|^chat_template\.jinja$/;
const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const ADAPTER = 'adapter_model.safetensors';

/** Milliseconds until a question must be answered, and those between attempts to go on with a download. */
const PATIENCE = 30_000;
const PAUSES = [1000, 3000, 9000];

/** A model of the hub: `folder` is where the cache keeps its blobs, refs and snapshots. */
type Repo = { name: string; id: string; revision: string; endpoint: string; folder: string; token: string };

/** A file of the hub. `hash`, its name in the cache: SHA-256 if Git LFS stores it, else what Git calls the content. */
type HubFile = { path: string; size: number; hash: string };

/** The hub gives no answer, or none that can be used; another time it may. The message says why. */
class Unreachable extends Error {}

/**
 * The folder of a model: `name` itself if that is a folder on this machine. Otherwise that of a model of the Hugging
 * Face hub, in the cache that Python's huggingface_hub keeps (`HF_HOME`), after fetching what is missing there. Offline
 * (`HF_HUB_OFFLINE=1`, or the hub cannot be reached) the cache has to do.
 * @param name - a folder, or `owner/name`, or `owner/name@revision` with a branch, a tag or a commit
 * @throws {UserError} if it is neither, or if the hub refuses, breaks off, or sends something else than it promised
 */
export async function resolveModel(name: string): Promise<string> {
  const found = await stat(name).catch(() => undefined);
  if (found?.isDirectory()) return name;
  const [, id, revision = 'main'] = HUB_ID.exec(name) ?? [];
  if (found || !id) {
    throw new UserError(
      `${name}: a model must be a folder, or an id on the hub such as Qwen/Qwen2.5-0.5B-Instruct, found ${found ? 'a file' : 'no such folder'}; check the path.`,
    );
  }
  const repo = await openRepo(name, id, revision);
  const cached = await cachedSnapshot(repo);
  const isOffline = /^(1|on|yes|true)$/i.test(process.env.HF_HUB_OFFLINE ?? '');
  const nowhere = `${name}: there is no such folder, no complete copy in ${repo.folder}`;
  if (isOffline && cached) return cached;
  if (isOffline) {
    throw new UserError(`${nowhere}, and HF_HUB_OFFLINE forbids asking the hub; unset it, or give a folder.`);
  }
  try {
    return await updateSnapshot(repo);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    const reason = `${repo.endpoint} cannot be reached (${error.message})`;
    if (!cached) throw new UserError(`${nowhere}, and ${reason}; check the name and the connection.`);
    console.log(`${name}: ${reason}; going on with ${cached}`);
    return cached;
  }
}

/** What the environment says of the hub, by the variables of huggingface_hub; the library reads only some of them. */
async function openRepo(name: string, id: string, revision: string): Promise<Repo> {
  const { HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env;
  const endpoint = (HF_ENDPOINT || HUB_URL).replace(/\/+$/, '');
  if (!URL.canParse(endpoint)) throw new UserError(`HF_ENDPOINT must be a URL such as ${HUB_URL}, found ${endpoint}.`);
  const expand = (path: string) => path.replace(/^~(?=$|[\\/])/, homedir());
  const home = HF_HOME ?? join(XDG_CACHE_HOME ?? '~/.cache', 'huggingface');
  const tokenFile = expand(HF_TOKEN_PATH ?? join(home, 'token'));
  const token = (HF_TOKEN || (await readFile(tokenFile, 'utf8').catch(() => ''))).trim();
  if (!/^[!-~]*$/.test(token)) throw new UserError(`HF_TOKEN, or ${tokenFile}, must hold one token, found other text.`);
  const folder = join(expand(getHFHubCachePath()), getRepoFolderName({ name: id, type: 'model' }));
  return { name, id, revision, endpoint, folder, token };
}

/** The folder of the revision in the cache, as it was when last asked for; undefined unless it is complete. */
async function cachedSnapshot({ folder, revision }: Repo): Promise<string | undefined> {
  const ref = await readFile(join(folder, 'refs', revision), 'utf8').catch(() => '');
  const commit = COMMIT.test(revision) ? revision : ref.trim();
  const snapshot = join(folder, 'snapshots', commit);
  const files = COMMIT.test(commit) ? await readdir(snapshot).catch(() => []) : [];
  const weights = await weightsOf(snapshot, files);
  const isComplete = files.some((file) => /^(adapter_)?config\.json$/.test(file)) && weights.length > 0;
  return isComplete && (await missingFrom(snapshot, weights)).length === 0 ? snapshot : undefined;
}

/** Names of the files with a model's weights. Of shards, the index tells them, which must be in the folder by then. */
async function weightsOf(folder: string, files: string[]): Promise<string[]> {
  const whole = files.filter((file) => file === WEIGHTS || file === ADAPTER);
  if (files.includes(WEIGHTS) || !files.includes(INDEX)) return whole;
  const index = await readJsonObject(join(folder, INDEX));
  const shards = [...new Set(Object.values(index?.weight_map ?? {}))];
  // A name with a path in it could lead out of the folder.
  const strange = shards.find((shard) => !/^[\w.-]+\.safetensors$/.test(String(shard)));
  if (strange === undefined) return [...whole, ...shards];
  throw new UserError(`${join(folder, INDEX)}: a shard must be a .safetensors file, found ${shown(strange)}.`);
}

const sizeOf = async (file: string) => (await stat(file).catch(() => undefined))?.size;

/** Those of the files that are not in the folder, not even as links to something. */
async function missingFrom(folder: string, files: string[]): Promise<string[]> {
  const sizes = await Promise.all(files.map((file) => sizeOf(join(folder, file))));
  return files.filter((_, i) => sizes[i] === undefined);
}

/**
 * Asks the hub which commit the revision is, and fetches what the cache lacks of it: small files first, then weights.
 * The library's snapshotDownload would take every file of the repository, would not check what arrives, and starts anew
 * after an interruption; so the library asks the questions, and {@link download} does the rest.
 * @returns the folder of the commit
 * @throws {Unreachable} if the hub does not answer
 */
async function updateSnapshot(repo: Repo): Promise<string> {
  const question = { ...libraryOptions(repo), name: repo.id, revision: repo.revision };
  const info = await modelInfo({ ...question, additionalFields: ['sha', 'filePaths'] }).catch(asUnreachable);
  if (!COMMIT.test(info.sha)) throw new Unreachable('its answer names no commit');
  const { sha: commit, filePaths: files } = info;
  if (![WEIGHTS, INDEX, ADAPTER].some((file) => files.includes(file))) {
    const others = files.filter((file) => /\.(bin|gguf|pth?|h5|msgpack|onnx|safetensors)$/.test(file)).slice(0, 3);
    throw new UserError(
      `${repo.id}: weights must be in ${WEIGHTS}, or in shards with ${INDEX}, found ${others.length > 0 ? shown(others) : 'none'}; take another model, or load it in Python and save it with save_pretrained().`,
    );
  }
  const snapshot = join(repo.folder, 'snapshots', commit);
  const isSmall = (file: string) => SMALL_FILES.test(file) || (file === INDEX && !files.includes(WEIGHTS));
  const small = await missingFrom(snapshot, files.filter(isSmall));
  const sizes = new Map<string, HubFile>();
  if (small.length > 0) await fetchFiles(repo, snapshot, small, sizes);
  const weights = await missingFrom(snapshot, await weightsOf(snapshot, files));
  if (weights.length > 0) await fetchFiles(repo, snapshot, weights, sizes);

  if (repo.revision !== commit) {
    const ref = join(repo.folder, 'refs', repo.revision); // written last: it never names what is not complete
    await mkdir(dirname(ref), { recursive: true });
    await writeFile(ref, commit);
  }
  return snapshot;
}

/**
 * Fetches files of a commit into the cache, and links its snapshot to them. Weights show their progress.
 * @param listed - what the hub has; it is asked for if that is empty
 */
async function fetchFiles(repo: Repo, snapshot: string, paths: string[], listed: Map<string, HubFile>): Promise<void> {
  const commit = basename(snapshot);
  if (listed.size === 0) for (const file of await listCommit(repo, commit)) listed.set(file.path, file);
  const files = paths.map((path) => {
    const file = listed.get(path);
    if (file && /^([0-9a-f]{40}|[0-9a-f]{64})$/.test(file.hash)) return file;
    throw new UserError(
      `${repo.id}: ${path} belongs to the model, but ${repo.endpoint} does not list it; ask its owner.`,
    );
  });
  await mkdir(join(repo.folder, 'blobs'), { recursive: true });
  await mkdir(snapshot, { recursive: true });

  const total = files.reduce((sum, file) => sum + file.size, 0);
  const isLarge = paths.some((path) => path.endsWith('.safetensors'));
  if (isLarge) console.log(`${repo.id}: fetching ${megabytes(total)} into ${repo.folder}`);
  const bar = isLarge && process.stdout.isTTY ? startBar(total) : undefined;
  let done = 0;
  try {
    for (const file of files) {
      const blob = join(repo.folder, 'blobs', file.hash);
      const showProgress = (bytes: number) => bar?.update(done + bytes, { done: megabytes(done + bytes) });
      if ((await sizeOf(blob)) !== file.size) await download(repo, commit, file, blob, showProgress);
      await linkTo(blob, join(snapshot, file.path));
      done += file.size;
      if (isLarge && !bar) console.log(`${repo.id}: ${file.path}, ${megabytes(file.size)}`);
    }
  } finally {
    bar?.stop();
  }
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

function startBar(total: number): SingleBar {
  const format = `{bar} {percentage}% · {done} of ${megabytes(total)} · {eta_formatted} left`;
  // As in lib/run/progress.ts: a process that is killed could not restore the cursor, and Ctrl-C is not its business.
  const bar = new SingleBar({ stream: process.stdout, format, barsize: 20, hideCursor: false, gracefulExit: false });
  bar.start(total, 0, { done: megabytes(0) });
  return bar;
}

/** The files at the top of a commit. */
async function listCommit(repo: Repo, revision: string): Promise<HubFile[]> {
  const files: HubFile[] = [];
  try {
    for await (const { path, size, oid, lfs } of listFiles({ ...libraryOptions(repo), repo: repo.id, revision })) {
      files.push({ path, size: lfs?.size ?? size, hash: lfs?.oid ?? oid ?? '' });
    }
    return files;
  } catch (error) {
    return asUnreachable(error);
  }
}

/**
 * Fetches a file. It grows in `<blob>.process-<pid>.incomplete`, where this process or a later one goes on after an
 * interruption, and gets its name when its hash is right. By plain HTTP, which the hub speaks for all files, also for
 * those in Xet; the library could start at an offset as well, but takes an answer from byte 0 for one from there.
 * @param showProgress - is told how many bytes of the file are there
 * @throws {UserError} if the connection keeps breaking off, the disk is full, or the content is not what was promised
 */
async function download(
  repo: Repo,
  commit: string,
  { path, size, hash }: HubFile,
  blob: string,
  showProgress: (bytes: number) => void,
): Promise<void> {
  const partial = await claimPartial(blob);
  // Of two that download the same file into the same place, one finds it moved away when it is done.
  const sizeSoFar = async () => (await sizeOf(partial)) ?? (await sizeOf(blob)) ?? 0;
  const url = `${repo.endpoint}/${repo.id}/resolve/${commit}/${path}`;
  let failures = 0;
  for (let have = await sizeSoFar(); have < size; ) {
    const before = have;
    const error = await append(repo, url, partial, { have, size, showProgress }).catch((error) => error);
    if (error?.code === 'ENOSPC') {
      throw new UserError(
        `${partial}: the disk is full, ${path} has ${megabytes(size)}; free some space and run again.`,
      );
    }
    if (error instanceof UserError || error?.syscall) throw error;
    have = await sizeSoFar();
    if (have >= size) break;
    failures = have > before ? 1 : failures + 1;
    if (failures > PAUSES.length) {
      const progress = `${megabytes(have)} of the ${megabytes(size)} of ${path}`;
      throw new UserError(
        `${repo.id}: the connection to ${repo.endpoint} keeps breaking off (${reasonOf(error)}) with ${progress}; run again, and it continues there.`,
      );
    }
    await pause(PAUSES[failures - 1]);
  }
  try {
    const found = await contentHash(partial, hash.length);
    if (found === hash) return await rename(partial, blob);
    await rm(partial);
    throw new UserError(
      `${repo.id}: ${path} arrived damaged and was not kept: its hash must be ${hash}, found ${found}; run again to fetch it anew.`,
    );
  } catch (error) {
    if ((await sizeOf(blob)) !== size) throw error;
  }
}

/** Where this process collects a blob: it takes over what a process left that is no more. */
async function claimPartial(blob: string): Promise<string> {
  const partial = `${blob}.process-${process.pid}.incomplete`;
  for (const file of await readdir(dirname(blob))) {
    const [, owner, pid] = /^(\w+)\.process-(\d+)\.incomplete$/.exec(file) ?? [];
    const isFree = owner === basename(blob) && (await sizeOf(partial)) === undefined && !isRunning(Number(pid));
    if (isFree) await rename(join(dirname(blob), file), partial).catch(() => {}); // another may have been faster
  }
  return partial;
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/** Fetches what is missing of a file. Each byte goes to its own place, so that two who do so do no harm. */
async function append(
  repo: Repo,
  url: string,
  file: string,
  { have, size, showProgress }: { have: number; size: number; showProgress: (bytes: number) => void },
): Promise<void> {
  await (await open(file, 'a')).close();
  const range = have > 0 ? { range: `bytes=${have}-` } : undefined;
  const response = await request(repo, url, { headers: { 'accept-encoding': 'identity', ...range } });
  const start = response.status === 206 ? have : 0; // a server without ranges sends everything again
  let position = start;
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
}

/** SHA-256 of a file (64 digits), or its name as a Git blob (40 digits). */
async function contentHash(file: string, digits: number): Promise<string> {
  const hash = digits === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${await sizeOf(file)}\0`);
  for await (const chunk of createReadStream(file)) hash.update(chunk);
  return hash.digest('hex');
}

/** Links a name in a snapshot to its blob, or copies it where there are no links. */
async function linkTo(blob: string, pointer: string): Promise<void> {
  try {
    await symlink(relative(dirname(pointer), blob), pointer);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return; // it waited for the blob, or another was faster
    await link(blob, pointer).catch(() => copyFile(blob, pointer)); // Windows allows symbolic links to some users only
  }
}

/** For functions of the library. It gets no token: it would send it along wherever the hub's answers point. */
const libraryOptions = (repo: Repo) => ({
  hubUrl: repo.endpoint,
  fetch: ((url, init) =>
    request(repo, String(url), { ...init, signal: AbortSignal.timeout(PATIENCE) })) satisfies typeof fetch,
});

/**
 * Fetches a URL, with the token if it is the endpoint's; where it is redirected to another host, `fetch` takes that away.
 * @throws {Unreachable} if it is worth trying again
 * @throws {UserError} if the hub refuses
 */
async function request(repo: Repo, url: string, init: RequestInit): Promise<Response> {
  const { origin } = new URL(repo.endpoint);
  const headers = new Headers(init.headers);
  if (repo.token && new URL(url).origin === origin) headers.set('authorization', `Bearer ${repo.token}`);
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

/** Rethrows what is no refusal of the hub as {@link Unreachable}. */
function asUnreachable(error: unknown): never {
  throw error instanceof UserError || error instanceof Unreachable ? error : new Unreachable(reasonOf(error));
}

/** `fetch` hides the reason in the cause. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error & { cause?: NodeJS.ErrnoException };
  return oneLine(cause?.code ?? (cause?.message || message));
}
