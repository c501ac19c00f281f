import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { UserError } from '../run/errors.ts';
import { loadCheckpoint } from './checkpoint.ts';
import { resolveModel } from './hub.ts';
import { loadTokenizer } from './tokenizer.ts';

const pauses = vi.hoisted((): number[] => []);
vi.mock('node:timers/promises', () => ({ setTimeout: async (ms: number) => void pauses.push(ms) }));

const ID = 'owner/tiny';
const TOKEN = 'hf_secret';
const FIRST = 'a'.repeat(40);
const SECOND = 'b'.repeat(40);
const ABSENT_PID = 999_999_999;

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
};
let hub: Hub;
let requests: { host: 'hub' | 'cdn'; method: string; path: string; headers: IncomingHttpHeaders }[];
let servers: { hub: Server; cdn: Server };
let tiny: Record<string, Buffer>;
let root: string;
let printed: string[];

const hashOf = (bytes: Buffer, isLfs: boolean) =>
  isLfs
    ? createHash('sha256').update(bytes).digest('hex')
    : createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
const isLfs = (file: string) => file.endsWith('.safetensors');
const urlOf = (server: Server) => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;

/** Speaks as huggingface.co does: /api/models/<id>/revision/<rev>, /api/models/<id>/tree/<rev>, /<id>/resolve/<rev>/<file>. */
const answerAsHub: RequestListener = (request, response) => {
  const { pathname } = new URL(request.url!, 'http://hub');
  requests.push({ host: 'hub', method: request.method!, path: pathname, headers: request.headers });
  const refuse = (status: number, code?: string) =>
    response.writeHead(status, code ? { 'X-Error-Code': code } : {}).end('{"error":"no"}');
  const json = (value: unknown) =>
    response.writeHead(200, { 'Content-Type': 'application/json' }).end(JSON.stringify(value));

  const [, question, id, verb, revision, file] =
    /^(\/api\/models)?\/(.+?)\/(revision|tree|resolve)\/([^/]+)\/?(.*)$/.exec(pathname) ?? [];
  const { refusal } = hub;
  if (refusal && (refusal.of === 'all' || !question)) return refuse(refusal.status, refusal.code);
  if (id !== ID) return refuse(401, 'RepoNotFound'); // as for somebody unknown, who shall not learn what is private
  const commit = hub.branches[revision] ?? revision;
  const files = hub.commits[commit];
  if (!files) return refuse(404, 'RevisionNotFound');
  if (verb === 'revision') {
    return json({ _id: '1', id, sha: commit, siblings: Object.keys(files).map((rfilename) => ({ rfilename })) });
  }
  if (verb === 'tree') {
    const entry = (path: string) => {
      const size = files[path].length;
      const lfs = isLfs(path) ? { lfs: { oid: hashOf(files[path], true), size, pointerSize: 130 } } : {};
      return { type: 'file', path, size, oid: hashOf(files[path], false), ...lfs };
    };
    return json(Object.keys(files).map(entry));
  }
  if (!files[file]) return refuse(404, 'EntryNotFound');
  const etag = `"${hashOf(files[file], isLfs(file))}"`;
  response.setHeader('X-Repo-Commit', commit);
  if (!isLfs(file)) return response.setHeader('ETag', etag).end(hub.fakes[file] ?? files[file]);
  const linked = { 'X-Linked-Etag': etag, 'X-Linked-Size': files[file].length };
  response.writeHead(302, { ...linked, Location: `${urlOf(servers.cdn)}/${commit}/${file}` }).end();
};

const answerAsCdn: RequestListener = (request, response) => {
  requests.push({ host: 'cdn', method: request.method!, path: request.url!, headers: request.headers });
  const [, commit, file] = request.url!.split('/');
  const bytes = hub.fakes[file] ?? hub.commits[commit][file];
  const range = hub.ignoresRanges ? null : /bytes=(\d+)-/.exec(request.headers.range ?? '');
  const start = Number(range?.[1] ?? 0);
  const rangeHeaders = range ? { 'Content-Range': `bytes ${start}-${bytes.length - 1}/${bytes.length}` } : {};
  response.writeHead(range ? 206 : 200, { 'Content-Length': bytes.length - start, ...rangeHeaders });
  const cut = hub.cuts.shift();
  if (cut === undefined) response.end(bytes.subarray(start));
  else response.write(bytes.subarray(start, start + cut), () => setTimeout(() => response.destroy(), 20));
};

const listen = (server: Server) => new Promise<void>((resolve) => void server.listen(0, '127.0.0.1', resolve));

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
  requests = [];
  pauses.length = 0;
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

const cacheOf = (...path: string[]) => join(root, 'hub', 'models--owner--tiny', ...path);
const snapshotOf = (commit: string) => cacheOf('snapshots', commit);
const pathsAt = (host: 'hub' | 'cdn') => requests.filter((request) => request.host === host).map(({ path }) => path);
const weights = () => tiny['model.safetensors'];
const weightsBlob = () => cacheOf('blobs', hashOf(weights(), true));

/** The one sentence with which a name is refused. */
async function refusalOf(name: string): Promise<string> {
  const error = await resolveModel(name).then(
    (folder) => new Error(`not refused, but ${folder}`),
    (error) => error,
  );
  expect(error).toBeInstanceOf(UserError);
  expect(error.message).toMatch(/^[^\n]+\.$/);
  expect(error.message).not.toContain(TOKEN);
  return error.message;
}

async function expectLoadable(folder: string): Promise<void> {
  const { params, config } = await loadCheckpoint(folder);
  const { vocabSize } = await loadTokenizer(folder);
  expect(vocabSize).toBeLessThanOrEqual(config.vocabSize);
  tf.dispose(params);
}

describe('names', () => {
  test('a folder is what it is', async () => {
    expect(await resolveModel('models/tiny')).toBe('models/tiny');
    expect(await resolveModel(root)).toBe(root);
    expect(requests).toEqual([]);
  });

  test.each([
    './x',
    '/x/y',
    'a/b/c',
    '../x',
    'x/..',
    '',
    'a b',
    'x/y@',
    'x/y@../z',
    '-x/y',
    'C:\\x',
    'a--b/c',
    'x/.git',
  ])('"%s" can be no id: nothing is asked', async (name) => {
    expect(await refusalOf(name)).toMatch(/must be a folder, or an id on the hub such as .*, found no such folder/);
    expect(requests).toEqual([]);
  });

  test('a file is no model', async () => {
    expect(await refusalOf('package.json')).toContain('found a file');
  });

  test.each(['models/tny', 'tny'])('%s may be meant as either, and the refusal speaks of both', async (name) => {
    expect(await refusalOf(name)).toMatch(/there is no such folder, and http:.* has no such model .*; check the name/);
  });
});

describe('the first time', () => {
  test('fetches what belongs to a model into the layout of the cache', async () => {
    const folder = await resolveModel(ID);
    expect(folder).toBe(snapshotOf(FIRST));
    const expected = Object.keys(tiny).filter((name) => name !== 'README.md');
    expect((await readdir(folder)).sort()).toEqual(expected.sort());
    for (const name of expected) {
      expect(await readlink(join(folder, name))).toBe(`../../blobs/${hashOf(tiny[name], isLfs(name))}`);
      expect((await readFile(join(folder, name))).equals(tiny[name])).toBe(true);
    }
    expect(await readFile(cacheOf('refs', 'main'), 'utf8')).toBe(FIRST);
    expect(await readdir(cacheOf('blobs'))).toHaveLength(expected.length);
    await expectLoadable(folder);
    expect(printed).toEqual([`${ID}: fetching 3.2 MB into ${cacheOf()}`, `${ID}: model.safetensors, 3.2 MB`]);
  });

  test('takes a shard for each that the index names, and nothing else', async () => {
    const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    const index = { weight_map: { a: shards[0], b: shards[1], c: shards[0] } };
    const files = {
      'config.json': tiny['config.json'],
      'model.safetensors.index.json': Buffer.from(JSON.stringify(index)),
    };
    const others = { 'consolidated.safetensors': Buffer.from('3'), 'original/config.json': Buffer.from('4') };
    hub.commits[FIRST] = { ...files, ...others, [shards[0]]: Buffer.from('1'), [shards[1]]: Buffer.from('22') };
    const folder = await resolveModel(ID);
    expect((await readdir(folder)).sort()).toEqual([...Object.keys(files), ...shards].sort());
    expect(await readFile(join(folder, shards[1]), 'utf8')).toBe('22');
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await resolveModel(ID)).toBe(folder);
    await rm(join(folder, shards[1]));
    expect(await refusalOf(ID)).toContain('no complete copy');
  });

  test.each(['../../../x.safetensors', 'a/x.safetensors', 'x.bin'])('refuses the shard %s', async (shard) => {
    const index = Buffer.from(JSON.stringify({ weight_map: { a: shard } }));
    hub.commits[FIRST] = { 'config.json': tiny['config.json'], 'model.safetensors.index.json': index, [shard]: index };
    expect(await refusalOf(ID)).toContain('a shard must be a .safetensors file');
  });

  test('refuses a shard that the hub does not have', async () => {
    const index = Buffer.from(JSON.stringify({ weight_map: { a: 'x.safetensors' } }));
    hub.commits[FIRST] = { 'config.json': tiny['config.json'], 'model.safetensors.index.json': index };
    expect(await refusalOf(ID)).toContain('does not list it');
    expect(existsSync(cacheOf('refs', 'main'))).toBe(false);
  });

  test('takes an adapter', async () => {
    const files = { 'adapter_config.json': Buffer.from('{}'), 'adapter_model.safetensors': Buffer.from('weights') };
    hub.commits[FIRST] = { ...files, 'training_args.bin': Buffer.from('x') };
    expect((await readdir(await resolveModel(ID))).sort()).toEqual(Object.keys(files));
  });

  test('says which weights it found if there is no safetensors file', async () => {
    hub.commits[FIRST] = { 'config.json': tiny['config.json'], 'pytorch_model.bin': Buffer.from('x') };
    expect(await refusalOf(ID)).toContain('found ["pytorch_model.bin"]');
    expect(pathsAt('hub')).toHaveLength(1);
  });

  test('shows a bar on a terminal', async () => {
    const { isTTY } = process.stdout;
    const written: string[] = [];
    const keep = (text: unknown) => written.push(String(text)) > 0;
    vi.spyOn(process.stdout, 'write').mockImplementation(keep as typeof process.stdout.write);
    try {
      process.stdout.isTTY = true;
      await resolveModel(ID);
    } finally {
      process.stdout.isTTY = isTTY;
    }
    expect(written.join('')).toContain('100% · 3.2 MB of 3.2 MB');
    expect(printed).toHaveLength(1);
  });
});

describe('the next time', () => {
  test('asks for the commit, and fetches nothing', async () => {
    await resolveModel(ID);
    requests = [];
    await resolveModel(ID);
    expect(requests.map(({ path }) => path)).toEqual([`/api/models/${ID}/revision/main`]);
  });

  test('fetches of a new commit only what is new', async () => {
    await resolveModel(ID);
    hub.commits[SECOND] = { ...tiny, 'generation_config.json': Buffer.from('{"eos_token_id": 2}') };
    hub.branches.main = SECOND;
    requests = [];
    const folder = await resolveModel(ID);
    expect(folder).toBe(snapshotOf(SECOND));
    expect(requests.filter(({ path }) => path.includes('/resolve/')).map(({ path }) => path)).toEqual([
      `/${ID}/resolve/${SECOND}/generation_config.json`,
    ]);
    expect(pathsAt('cdn')).toEqual([]);
    expect(await readFile(cacheOf('refs', 'main'), 'utf8')).toBe(SECOND);
    await expectLoadable(folder);
  });

  test('fetches what is missing of a commit', async () => {
    await resolveModel(ID);
    await rm(join(snapshotOf(FIRST), 'tokenizer.json'));
    await rm(cacheOf('blobs', hashOf(tiny['tokenizer.json'], false)));
    requests = [];
    await expectLoadable(await resolveModel(ID));
    expect(pathsAt('hub').at(-1)).toBe(`/${ID}/resolve/${FIRST}/tokenizer.json`);
    expect(requests).toHaveLength(3);
  });
});

describe('revisions', () => {
  test.each([
    ['branch', 'v1.0', 'v1.0'],
    ['commit', SECOND, undefined],
  ])('a %s', async (_, revision, ref) => {
    hub.commits[SECOND] = { ...tiny, 'generation_config.json': Buffer.from('{}') };
    hub.branches['v1.0'] = SECOND;
    const folder = await resolveModel(`${ID}@${revision}`);
    expect(folder).toBe(snapshotOf(SECOND));
    expect(existsSync(cacheOf('refs')) ? await readdir(cacheOf('refs')) : []).toEqual(ref ? [ref] : []);
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await resolveModel(`${ID}@${revision}`)).toBe(folder);
    expect(await refusalOf(ID)).toContain('no complete copy');
  });

  test('one that does not exist', async () => {
    expect(await refusalOf(`${ID}@v9`)).toContain('the hub has this model, but no revision "v9"');
  });
});

describe('without the hub', () => {
  let unreachable: string;
  beforeAll(async () => {
    const gone = createServer();
    await listen(gone);
    unreachable = urlOf(gone);
    gone.close();
  });

  test('HF_HUB_OFFLINE: the cache does, and nothing is asked', async () => {
    const folder = await resolveModel(ID);
    requests = [];
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await resolveModel(ID)).toBe(folder);
    expect(requests).toEqual([]);
    await expectLoadable(folder);
  });

  test('HF_HUB_OFFLINE and nothing in the cache', async () => {
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await refusalOf(ID)).toMatch(/no such folder, no complete copy in .*, and HF_HUB_OFFLINE forbids/);
    expect(requests).toEqual([]);
  });

  test('HF_HUB_OFFLINE and a half of it in the cache', async () => {
    hub.cuts = [1000, ...Array(9).fill(0)];
    await refusalOf(ID);
    expect(await readdir(snapshotOf(FIRST))).toContain('config.json');
    await writeFile(join(await mkdir(cacheOf('refs'), { recursive: true }).then(() => cacheOf('refs')), 'main'), FIRST);
    vi.stubEnv('HF_HUB_OFFLINE', '1');
    expect(await refusalOf(ID)).toContain('no complete copy');
  });

  test('unreachable: the cache does, and a line says so', async () => {
    const folder = await resolveModel(ID);
    vi.stubEnv('HF_ENDPOINT', unreachable);
    expect(await resolveModel(ID)).toBe(folder);
    expect(printed.at(-1)).toBe(`${ID}: ${unreachable} cannot be reached (ECONNREFUSED); going on with ${folder}`);
  });

  test('unreachable and nothing in the cache', async () => {
    vi.stubEnv('HF_ENDPOINT', unreachable);
    expect(await refusalOf(ID)).toMatch(/no such folder, no complete copy in .* cannot be reached \(ECONNREFUSED\)/);
  });

  test.each([503, 429])('out of order (%i): the cache does', async (status) => {
    const folder = await resolveModel(ID);
    hub.refusal = { of: 'all', status };
    expect(await resolveModel(ID)).toBe(folder);
    expect(printed.at(-1)).toContain(`cannot be reached (it answered ${status})`);
  });

  test('answers that are not the hub’s', async () => {
    const portal = createServer((_, response) => response.end('<html>Log in to this hotel</html>'));
    await listen(portal);
    vi.stubEnv('HF_ENDPOINT', urlOf(portal));
    expect(await refusalOf(ID)).toContain('cannot be reached');
    portal.close();
  });
});

describe('a connection that breaks off', () => {
  const rangesAsked = () => requests.filter(({ host }) => host === 'cdn').map(({ headers }) => headers.range);

  test('is taken up where it broke', async () => {
    hub.cuts = [1_000_000, 500_000];
    await expectLoadable(await resolveModel(ID));
    const [first, second, third] = rangesAsked();
    expect(first).toBeUndefined();
    expect(second).toMatch(/^bytes=[1-9]\d*-$/);
    expect(Number(third?.slice(6, -1))).toBeGreaterThan(Number(second?.slice(6, -1)));
    expect((await readFile(weightsBlob())).equals(weights())).toBe(true);
    expect(pauses).toEqual([1000, 1000]);
  });

  test.each([
    ['by this process', process.pid],
    ['by a later one', ABSENT_PID],
  ])('again and again: says so, and is taken up %s', async (_, pid) => {
    hub.cuts = [2_000_000, ...Array(9).fill(0)];
    expect(await refusalOf(ID)).toMatch(
      /keeps breaking off \(.+\) with \d\.\d MB of the 3.2 MB of model.safetensors; run again/,
    );
    expect(pauses.slice(-3)).toEqual([1000, 3000, 9000]);
    hub.cuts = [];
    expect(existsSync(join(snapshotOf(FIRST), 'model.safetensors'))).toBe(false);
    const left = `${weightsBlob()}.process-${process.pid}.incomplete`;
    const { size } = await lstat(left);
    await rename(left, `${weightsBlob()}.process-${pid}.incomplete`);
    requests = [];
    await expectLoadable(await resolveModel(ID));
    expect(rangesAsked()).toEqual([`bytes=${size}-`]);
    expect((await readdir(cacheOf('blobs'))).filter((name) => name.includes('incomplete'))).toEqual([]);
  });

  test('and a server that knows no ranges', async () => {
    hub.cuts = [1_000_000];
    hub.ignoresRanges = true;
    await expectLoadable(await resolveModel(ID));
    expect((await readFile(weightsBlob())).equals(weights())).toBe(true);
  });

  test('what a running process collects is left to it', async () => {
    const theirs = `${weightsBlob()}.process-${process.ppid}.incomplete`;
    await mkdir(cacheOf('blobs'), { recursive: true });
    await writeFile(theirs, 'theirs');
    await expectLoadable(await resolveModel(ID));
    expect(rangesAsked()).toEqual([undefined]);
    expect(await readFile(theirs, 'utf8')).toBe('theirs');
  });

  test('two at once do no harm', async () => {
    const folders = await Promise.all([resolveModel(ID), resolveModel(ID), resolveModel(ID)]);
    expect(folders).toEqual(Array(3).fill(snapshotOf(FIRST)));
    await expectLoadable(folders[0]);
    expect((await readdir(cacheOf('blobs'))).filter((name) => name.includes('incomplete'))).toEqual([]);
  });
});

describe('content that is not what the hub promised', () => {
  const flipped = (bytes: Buffer) => Buffer.from(bytes.map((byte, i) => (i === 500 ? byte ^ 1 : byte)));

  test.each(['model.safetensors', 'tokenizer.json'])('%s is refused, not kept, and fetched anew', async (file) => {
    hub.fakes[file] = flipped(tiny[file]);
    expect(await refusalOf(ID)).toMatch(`${file} arrived damaged and was not kept`);
    const hash = hashOf(tiny[file], isLfs(file));
    expect((await readdir(cacheOf('blobs'))).filter((name) => name.startsWith(hash))).toEqual([]);
    hub.fakes = {};
    await expectLoadable(await resolveModel(ID));
  });

  test('of the wrong length', async () => {
    hub.fakes['model.safetensors'] = Buffer.concat([weights(), Buffer.from('x')]);
    expect(await refusalOf(ID)).toContain('arrived damaged');
    hub.fakes['model.safetensors'] = weights().subarray(1);
    expect(await refusalOf(ID)).toContain('keeps breaking off');
  });

  test.skipIf(!existsSync('/dev/full'))('a full disk', async () => {
    await mkdir(cacheOf('blobs'), { recursive: true });
    await symlink('/dev/full', `${weightsBlob()}.process-${process.pid}.incomplete`);
    expect(await refusalOf(ID)).toContain('the disk is full');
  });
});

describe('permission', () => {
  const gate = () => {
    hub.refusal = { of: 'files', status: process.env.HF_TOKEN ? 403 : 401, code: 'GatedRepo' };
  };

  test('gated, without a token', async () => {
    gate();
    expect(await refusalOf(ID)).toMatch(`accept its conditions on ${urlOf(servers.hub)}/${ID}, and set HF_TOKEN`);
  });

  test('gated, with a token', async () => {
    vi.stubEnv('HF_TOKEN', TOKEN);
    gate();
    expect(await refusalOf(ID)).toMatch(/your token has no access; accept its conditions on/);
  });

  test('a token that the hub does not know', async () => {
    vi.stubEnv('HF_TOKEN', TOKEN);
    hub.refusal = { of: 'all', status: 401 };
    expect(await refusalOf(ID)).toContain('does not know your token');
  });

  test('a token that is none', async () => {
    vi.stubEnv('HF_TOKEN', `${TOKEN}\nx`);
    expect(await refusalOf(ID)).toContain('must hold one token');
  });

  test.each(['HF_TOKEN', 'HF_TOKEN_PATH', 'HF_HOME'])(
    'the token from %s goes to the hub, and nowhere else',
    async (from) => {
      if (from === 'HF_TOKEN') vi.stubEnv('HF_TOKEN', TOKEN);
      else await writeFile(join(root, from === 'HF_HOME' ? 'token' : 'my_token'), `${TOKEN}\n`);
      if (from === 'HF_TOKEN_PATH') vi.stubEnv('HF_TOKEN_PATH', join(root, 'my_token'));
      hub.cuts = [1000];
      await resolveModel(ID);
      const sent = (host: 'hub' | 'cdn') =>
        requests.filter((request) => request.host === host).map(({ headers }) => headers);
      expect(sent('hub').every(({ authorization }) => authorization === `Bearer ${TOKEN}`)).toBe(true);
      expect(sent('cdn')).toHaveLength(2);
      expect(JSON.stringify(sent('cdn'))).not.toContain(TOKEN);
      expect(printed.join()).not.toContain(TOKEN);
    },
  );
});

describe('where the cache is', () => {
  test.each([
    ['HF_HUB_CACHE', ''],
    ['HF_HOME', 'hub'],
    ['XDG_CACHE_HOME', 'huggingface/hub'],
  ])('%s', async (variable, below) => {
    vi.stubEnv('HF_HOME', variable === 'HF_HUB_CACHE' ? join(root, 'not_here') : undefined);
    vi.stubEnv('HF_TOKEN_PATH', join(root, 'none'));
    vi.stubEnv(variable, join(root, 'elsewhere'));
    const folder = await resolveModel(ID);
    expect(folder).toBe(join(root, 'elsewhere', below, 'models--owner--tiny', 'snapshots', FIRST));
  });

  test('HF_ENDPOINT must be a URL', async () => {
    vi.stubEnv('HF_ENDPOINT', 'nowhere');
    expect(await refusalOf(ID)).toContain('HF_ENDPOINT must be a URL');
  });
});
