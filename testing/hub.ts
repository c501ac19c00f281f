/** For tests: a hub on this machine that holds the bundled model, and misbehaves where it is told to. */
import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import {
  createServer,
  type IncomingHttpHeaders,
  type RequestListener,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, afterEach, beforeAll, beforeEach, expect, vi } from 'vitest';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import type { HubLimits } from '../lib/checkpoint/download.ts';
import { resolveModel } from '../lib/checkpoint/hub.ts';
import { loadTokenizer } from '../lib/checkpoint/tokenizer.ts';
import { UserError } from '../lib/errors.ts';

export const ID = 'owner/tiny';
export const TOKEN = 'hf_secret';
export const FIRST = 'a'.repeat(40);
export const SECOND = 'b'.repeat(40);

/** What the hub holds, and how it misbehaves; each test starts with the bundled model. */
type Hub = {
  /** Files of each commit. */
  commits: Record<string, Record<string, Buffer>>;
  branches: Record<string, string>;
  /** Cuts the connection after so many bytes of each of the CDN's next answers. */
  cuts: number[];
  /** Sent instead of the content. */
  fakes: Record<string, Buffer>;
  ignoresRanges: boolean;
  /** Answers `resolve` (files) or everything with a status and an error code. */
  refusal?: { of: 'files' | 'all'; status: number; code?: string };
  /** Answers in place of the hub and the CDN; false leaves it to them. */
  hostile?: (answer: Answer, response: ServerResponse) => boolean;
};
/** What a hub that means well would send: of a question, or of a file. */
export type Answer = { kind: 'revision' | 'tree' | 'small file' | 'weights'; bytes: Buffer; url: string };

export let hub: Hub;
export const requests: { host: 'hub' | 'cdn'; method: string; path: string; headers: IncomingHttpHeaders }[] = [];
export let servers: { hub: Server; cdn: Server };
export let tiny: Record<string, Buffer>;
export let root: string;
export let printed: string[];

export const hashOf = (bytes: Buffer, isLfs: boolean) =>
  isLfs
    ? createHash('sha256').update(bytes).digest('hex')
    : createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
export const isLfs = (file: string) => file.endsWith('.safetensors');
export const urlOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

/** Speaks as huggingface.co does: /api/models/<id>/revision/<rev>, /api/models/<id>/tree/<rev>, /<id>/resolve/<rev>/<file>. */
const answerAsHub: RequestListener = (request, response) => {
  const { pathname } = new URL(request.url!, 'http://hub');
  requests.push({ host: 'hub', method: request.method!, path: pathname, headers: request.headers });
  const refuse = (status: number, code?: string) =>
    response.writeHead(status, code ? { 'X-Error-Code': code } : {}).end('{"error":"no"}');
  const json = (kind: 'revision' | 'tree', value: unknown) => {
    const bytes = Buffer.from(JSON.stringify(value));
    if (hub.hostile?.({ kind, bytes, url: request.url! }, response)) return;
    response.writeHead(200, { 'Content-Type': 'application/json' }).end(bytes);
  };

  const [, question, id, verb, revision, file] =
    /^(\/api\/models)?\/(.+?)\/(revision|tree|resolve)\/([^/]+)\/?(.*)$/.exec(pathname) ?? [];
  const { refusal } = hub;
  if (refusal && (refusal.of === 'all' || !question)) return refuse(refusal.status, refusal.code);
  if (id !== ID) return refuse(401, 'RepoNotFound'); // as for somebody unknown, who shall not learn what is private
  const commit = hub.branches[revision] ?? revision;
  const files = hub.commits[commit];
  if (!files) return refuse(404, 'RevisionNotFound');
  if (verb === 'revision') {
    return json('revision', {
      _id: '1',
      id,
      sha: commit,
      siblings: Object.keys(files).map((rfilename) => ({ rfilename })),
    });
  }
  if (verb === 'tree') {
    const entry = (path: string) => {
      const size = files[path].length;
      const lfs = isLfs(path) ? { lfs: { oid: hashOf(files[path], true), size, pointerSize: 130 } } : {};
      return { type: 'file', path, size, oid: hashOf(files[path], false), ...lfs };
    };
    return json('tree', Object.keys(files).map(entry));
  }
  if (!files[file]) return refuse(404, 'EntryNotFound');
  const etag = `"${hashOf(files[file], isLfs(file))}"`;
  response.setHeader('X-Repo-Commit', commit);
  const sent = { kind: 'small file', bytes: files[file], url: request.url! } as const;
  if (!isLfs(file) && hub.hostile?.(sent, response)) return;
  if (!isLfs(file)) return response.setHeader('ETag', etag).end(hub.fakes[file] ?? files[file]);
  const linked = { 'X-Linked-Etag': etag, 'X-Linked-Size': files[file].length };
  response.writeHead(302, { ...linked, Location: `${urlOf(servers.cdn)}/${commit}/${file}` }).end();
};

const answerAsCdn: RequestListener = (request, response) => {
  requests.push({ host: 'cdn', method: request.method!, path: request.url!, headers: request.headers });
  const [, commit, file] = request.url!.split('/');
  const bytes = hub.fakes[file] ?? hub.commits[commit][file];
  if (hub.hostile?.({ kind: 'weights', bytes, url: request.url! }, response)) return;
  const range = hub.ignoresRanges ? null : /bytes=(\d+)-/.exec(request.headers.range ?? '');
  const start = Number(range?.[1] ?? 0);
  const rangeHeaders = range ? { 'Content-Range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` } : {};
  response.writeHead(range ? 206 : 200, { 'Content-Length': bytes.length - start, ...rangeHeaders });
  const cut = hub.cuts.shift();
  if (cut === undefined) response.end(bytes.subarray(start));
  else response.write(bytes.subarray(start, start + cut), () => setTimeout(() => response.destroy(), 20));
};

export const listen = (server: Server) => new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));

beforeAll(async () => {
  await tf.setBackend('cpu');
  const names = (await readdir('models/tiny')).filter((name) => /json$|safetensors$|README/.test(name));
  tiny = Object.fromEntries(
    await Promise.all(names.map(async (name) => [name, await readFile(join('models/tiny', name))] as const)),
  );
  servers = { hub: createServer(answerAsHub), cdn: createServer(answerAsCdn) };
  await Promise.all(Object.values(servers).map(listen));
});
afterAll(() => {
  for (const server of Object.values(servers)) server.close();
});

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'hub-'));
  hub = { commits: { [FIRST]: tiny }, branches: { main: FIRST }, cuts: [], fakes: {}, ignoresRanges: false };
  requests.length = 0;
  printed = [];
  vi.spyOn(console, 'log').mockImplementation((line) => void printed.push(line));
  for (const name of ['HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HUB_OFFLINE']) {
    vi.stubEnv(name, undefined);
  }
  vi.stubEnv('HF_HOME', root);
  vi.stubEnv('HF_ENDPOINT', urlOf(servers.hub));
});
afterEach(async () => {
  vi.unstubAllEnvs();
  vi.restoreAllMocks();
  await rm(root, { recursive: true });
});

export const cacheOf = (...path: string[]) => join(root, 'hub', 'models--owner--tiny', ...path);
export const snapshotOf = (commit: string) => cacheOf('snapshots', commit);
export const pathsAt = (host: 'hub' | 'cdn') =>
  requests.filter((request) => request.host === host).map(({ path }) => path);
export const weights = () => tiny['model.safetensors'];
export const weightsBlob = () => cacheOf('blobs', hashOf(weights(), true));

/** The one sentence with which a name is refused. */
export async function refusalOf(name: string, options?: { limits: HubLimits }): Promise<string> {
  const error = await resolveModel(name, options).then(
    (folder) => new Error(`not refused, but ${folder}`),
    (error) => error,
  );
  expect(error).toBeInstanceOf(UserError);
  expect(error.message).toMatch(/^[^\n]+\.$/);
  expect(error.message).not.toContain(TOKEN);
  return error.message;
}

export async function expectLoadable(folder: string): Promise<void> {
  const { params, config } = await loadCheckpoint(folder);
  const { vocabSize } = await loadTokenizer(folder);
  expect(vocabSize).toBeLessThanOrEqual(config.vocabSize);
  tf.dispose(params);
}
