/** Models of the Hugging Face hub, in the cache that Python's huggingface_hub keeps. */
import { mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { getHFHubCachePath, getRepoFolderName, listFiles, modelInfo } from '@huggingface/hub';
import { SingleBar } from 'cli-progress';
import { UserError } from '../errors.ts';
import { isObject, readJsonObject } from '../json.ts';
import { mistakeInName, shown } from '../text.ts';
import {
  asUnreachable,
  download,
  HUB_LIMITS,
  type HubFile,
  type HubLimits,
  hubEndpoint,
  isOffline,
  linkTo,
  type Repo,
  request,
  shownSize,
  sizeOf,
  Unreachable,
} from './download.ts';

/** `owner/name` or `name`, perhaps with `@revision`. Each becomes part of a path, so none may be `..`. */
const HUB_ID = /^(?!.*(?:--|\.\.))((?:\w[\w.-]*\/)?\w[\w.-]*)(?:@(\w[\w./-]*))?$/;
const COMMIT = /^[0-9a-f]{40}$/;
/** The hash of a file's content: Git's name for it (SHA-1), or SHA-256. */
const HASH = /^([0-9a-f]{40}|[0-9a-f]{64})$/;
const SMALL_FILES =
  /^((adapter_|generation_)?config|tokenizer[\w.-]*|special_tokens_map|added_tokens|chat_template)\.json$|^chat_template\.jinja$/;
const WEIGHTS = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const ADAPTER = 'adapter_model.safetensors';

/**
 * The folder of a model: `name` itself if that is a folder on this machine. Otherwise that of a model of the Hugging
 * Face hub, in the cache that Python's huggingface_hub keeps (`HF_HOME`), after fetching what is missing there. Offline
 * (`HF_HUB_OFFLINE=1`, or the hub cannot be reached) the cache has to do.
 * @param name - a folder, or `owner/name`, or `owner/name@revision` with a branch, a tag or a commit
 * @throws {UserError} if it is neither, or if the hub refuses, breaks off, or sends something else than it promised
 */
export async function resolveModel(
  name: string,
  { limits = HUB_LIMITS }: { limits?: HubLimits } = {},
): Promise<string> {
  const found = await stat(name).catch(() => undefined);
  if (found?.isDirectory()) return name;
  const [, id, revision = 'main'] = HUB_ID.exec(name) ?? [];
  if (found || !id) {
    throw new UserError(
      `${name}: a model must be a folder, or an id on the hub such as Qwen/Qwen2.5-0.5B-Instruct, found ${found ? 'a file' : 'no such folder'}; check the path.`,
    );
  }
  const mistake = mistakeInName(getRepoFolderName({ name: id, type: 'model' }));
  if (mistake) throw new UserError(`${shown(name)}: ${mistake}; check the name of the model.`);
  const repo = { ...(await openRepo(name, id, revision)), limits };
  const nowhere = `${name}: there is no such folder, no complete copy in ${repo.folder}`;
  if (isOffline()) {
    const cached = await cachedSnapshot(repo);
    if (cached) return cached;
    throw new UserError(`${nowhere}, and HF_HUB_OFFLINE forbids asking the hub; unset it, or give a folder.`);
  }
  try {
    return await updateSnapshot(repo);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    const reason = `${repo.endpoint} cannot be reached (${error.message})`;
    const cached = await cachedSnapshot(repo);
    if (!cached) throw new UserError(`${nowhere}, and ${reason}; check the name and the connection.`);
    console.log(`${name}: ${reason}; going on with ${cached}`);
    return cached;
  }
}

/** What the environment says of the hub, by the variables of huggingface_hub; the library reads only some of them. */
async function openRepo(name: string, id: string, revision: string): Promise<Omit<Repo, 'limits'>> {
  const { HF_TOKEN, HF_TOKEN_PATH, HF_HOME, XDG_CACHE_HOME } = process.env;
  const { endpoint, authorization: basic } = hubEndpoint();
  const expand = (path: string) => path.replace(/^~(?=$|[\\/])/, homedir());
  const home = HF_HOME ?? join(XDG_CACHE_HOME ?? '~/.cache', 'huggingface');
  const tokenFile = expand(HF_TOKEN_PATH ?? join(home, 'token'));
  const token = (HF_TOKEN || (await readFile(tokenFile, 'utf8').catch(() => ''))).trim();
  if (!/^[!-~]*$/.test(token)) throw new UserError(`HF_TOKEN, or ${tokenFile}, must hold one token, found other text.`);
  const folder = join(expand(getHFHubCachePath()), getRepoFolderName({ name: id, type: 'model' }));
  const authorization = basic || (token && `Bearer ${token}`); // as in Python, where those of the URL come first
  return { name, id, revision, endpoint, folder, token, authorization };
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
  const map = index?.weight_map;
  if (!isObject(map) || Object.keys(map).length === 0) {
    throw new UserError(
      `${join(folder, INDEX)}: "weight_map" must map tensor names to file names, found ${shown(map ?? null)}.`,
    );
  }
  const shards = [...new Set(Object.values(map))];
  // A name with a path in it could lead out of the folder.
  const isName = (shard: unknown) => isText(shard) && /^[\w.-]+\.safetensors$/.test(shard);
  if (shards.every(isText) && shards.every(isName)) return [...whole, ...shards];
  const strange = shards.find((shard) => !isName(shard));
  throw new UserError(`${join(folder, INDEX)}: a shard must be a .safetensors file, found ${shown(strange)}.`);
}

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
  const question = { ...requestOptions(repo), name: repo.id, revision: repo.revision };
  const info = await modelInfo({ ...question, additionalFields: ['sha', 'filePaths'] }).catch(asUnreachable);
  const { sha: commit, filePaths: files }: { sha: unknown; filePaths: unknown[] } = info;
  if (!isText(commit) || !COMMIT.test(commit)) throw new Unreachable('its answer names no commit');
  if (COMMIT.test(repo.revision) && commit !== repo.revision) throw new Unreachable('it answers with another commit');
  if (!files.every(isText)) throw new Unreachable('its answer names no files');
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
    if (file) return file;
    throw new UserError(
      `${repo.id}: ${path} belongs to the model, but ${repo.endpoint} does not list it with size and hash; ask its owner.`,
    );
  });
  await mkdir(join(repo.folder, 'blobs'), { recursive: true });
  await mkdir(snapshot, { recursive: true });

  const total = files.reduce((sum, file) => sum + file.size, 0);
  const isLarge = paths.some((path) => path.endsWith('.safetensors'));
  if (isLarge) console.log(`${repo.id}: fetching ${shownSize(total)} into ${repo.folder}`);
  const bar = isLarge && process.stdout.isTTY ? startBar(total) : undefined;
  let done = 0;
  try {
    for (const file of files) {
      const blob = join(repo.folder, 'blobs', file.hash);
      const showProgress = (bytes: number) => bar?.update(done + bytes, { done: shownSize(done + bytes) });
      if ((await sizeOf(blob)) !== file.size) await download(repo, commit, file, blob, showProgress);
      await linkTo(blob, join(snapshot, file.path));
      done += file.size;
      if (isLarge && !bar) console.log(`${repo.id}: ${file.path}, ${shownSize(file.size)}`);
    }
  } finally {
    bar?.stop();
  }
}

const isHubFile = (file: Record<keyof HubFile, unknown>): file is HubFile =>
  isText(file.path) &&
  Number.isSafeInteger(file.size) &&
  Number(file.size) >= 0 &&
  isText(file.hash) &&
  HASH.test(file.hash);

const isText = (value: unknown): value is string => typeof value === 'string';

function startBar(total: number): SingleBar {
  const format = `{bar} {percentage}% · {done} of ${shownSize(total)} · {eta_formatted} left`;
  // As in lib/run/progress.ts: a process that is killed could not restore the cursor, and Ctrl-C is not its business.
  const bar = new SingleBar({ stream: process.stdout, format, barsize: 20, hideCursor: false, gracefulExit: false });
  bar.start(total, 0, { done: shownSize(0) });
  return bar;
}

/** The files at the top of a commit, as far as the answer makes sense. */
async function listCommit(repo: Repo, revision: string): Promise<HubFile[]> {
  const files: HubFile[] = [];
  try {
    for await (const { path, size, oid, lfs } of listFiles({ ...requestOptions(repo), repo: repo.id, revision })) {
      const file = { path, size: lfs?.size ?? size, hash: lfs?.oid ?? oid };
      if (isHubFile(file)) files.push(file);
    }
    return files;
  } catch (error) {
    return asUnreachable(error);
  }
}

/**
 * Options with which functions of the library ask one question, limited in time and size over all pages of the answer. The
 * library gets no token, which it would send to wherever the hub's answers point; `request` adds it for the endpoint.
 */
function requestOptions(repo: Repo) {
  const { patience, maxAnswer } = repo.limits;
  const signal = AbortSignal.timeout(patience);
  let left = maxAnswer;
  const fetchAll: typeof fetch = async (url, init) => {
    const response = await request(repo, String(url), { ...init, signal });
    const chunks: Uint8Array[] = [];
    for await (const chunk of response.body ?? []) {
      left -= chunk.length;
      if (left < 0) throw new Unreachable(`its answer has more than ${shownSize(maxAnswer)}`);
      chunks.push(chunk);
    }
    return new Response(Buffer.concat(chunks), response);
  };
  return { hubUrl: repo.endpoint, fetch: fetchAll };
}
