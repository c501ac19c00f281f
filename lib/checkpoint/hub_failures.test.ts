import { existsSync } from 'node:fs';
import { lstat, mkdir, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer, type ServerResponse } from 'node:http';
import { join } from 'node:path';
import { beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import {
  type Answer,
  cacheOf,
  expectLoadable,
  FIRST,
  hashOf,
  hub,
  ID,
  isLfs,
  listen,
  printed,
  refusalOf,
  requests,
  root,
  servers,
  snapshotOf,
  TOKEN,
  tiny,
  urlOf,
  weights,
  weightsBlob,
} from '../../testing/hub.ts';
import { resolveModel } from './hub.ts';

const pauses = vi.hoisted((): number[] => []);
vi.mock('node:timers/promises', () => ({ setTimeout: async (ms: number) => void pauses.push(ms) }));
beforeEach(() => void pauses.splice(0));

const ABSENT_PID = 999_999_999;

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
    requests.length = 0;
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
    requests.length = 0;
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

  test.each(['model.safetensors', 'tokenizer.json'])('a byte more or less of %s', async (file) => {
    hub.fakes[file] = Buffer.concat([tiny[file], Buffer.from('x')]);
    expect(await refusalOf(ID)).toMatch(/arrived damaged|more was sent than announced/);
    hub.fakes[file] = tiny[file].subarray(0, -1);
    expect(await refusalOf(ID)).toMatch(/keeps breaking off .*less was sent than announced/);
  });

  test('what is left of a bad part is fetched anew, at once', async () => {
    const left = `${weightsBlob()}.process-${process.pid}.incomplete`;
    await mkdir(cacheOf('blobs'), { recursive: true });
    await writeFile(left, flipped(weights()).subarray(0, 1000));
    await expectLoadable(await resolveModel(ID));
    await writeFile(left, 'x'.repeat(weights().length + 1));
    await rm(weightsBlob());
    await rm(join(snapshotOf(FIRST), 'model.safetensors'));
    await expectLoadable(await resolveModel(ID));
  });

  test.skipIf(!existsSync('/dev/full'))('a full disk', async () => {
    await mkdir(cacheOf('blobs'), { recursive: true });
    await symlink('/dev/full', `${weightsBlob()}.process-${process.pid}.incomplete`);
    expect(await refusalOf(ID)).toContain('the disk is full');
  });
});

describe('what would never end', () => {
  const limits = { patience: 200, minBytes: 1000, maxAnswer: 1e5, pauses: [1, 1] };
  const hostile = (kind: Answer['kind'], answer: (response: ServerResponse, url: string, bytes: Buffer) => void) => {
    hub.hostile = ({ kind: asked, url, bytes }, response) => {
      if (asked === kind) answer(response, url, bytes);
      return asked === kind;
    };
  };
  const trickle = (response: ServerResponse) => {
    const timer = setInterval(() => response.write(' '), 20);
    response.on('close', () => clearInterval(timer));
  };
  const pour = (response: ServerResponse) => {
    response.write(Buffer.alloc(1e5));
    response.on('drain', () => response.write(Buffer.alloc(1e5)));
  };

  test.each(['revision', 'tree'] as const)('%s: no answer, a byte now and then, too long a one', async (kind) => {
    hostile(kind, () => {});
    expect(await refusalOf(ID, { limits })).toContain('cannot be reached (it does not answer in time)');
    hostile(kind, trickle);
    expect(await refusalOf(ID, { limits })).toContain('cannot be reached (it does not answer in time)');
    hostile(kind, pour);
    expect(await refusalOf(ID, { limits })).toContain('cannot be reached (its answer has more than 0.1 MB)');
  });

  test('a listing with always one more page', async () => {
    const next = (response: ServerResponse, url: string) =>
      response.setHeader('Link', `<${urlOf(servers.hub)}${url}>; rel="next"`);
    hostile('tree', (response, url) => void next(response, url).end('[]'));
    expect(await refusalOf(ID, { limits })).toContain('cannot be reached (it does not answer in time)');
    hostile('tree', (response, url, bytes) => void next(response, url).end(bytes));
    expect(await refusalOf(ID, { limits })).toMatch(/\(its answer has more than 0.1 MB|it does not answer in time\)/);
  });

  test.each(['small file', 'weights'] as const)('%s: no answer, a byte now and then, too much', async (kind) => {
    hostile(kind, () => {});
    expect(await refusalOf(ID, { limits })).toContain('keeps breaking off (fewer than 1000 bytes in 0.2 s)');
    hostile(kind, trickle);
    expect(await refusalOf(ID, { limits })).toContain('keeps breaking off (fewer than 1000 bytes in 0.2 s)');
    await rm(cacheOf('blobs'), { recursive: true });
    hostile(kind, pour);
    expect(await refusalOf(ID, { limits })).toContain('arrived damaged');
  });

  test('a file that is larger than the disk', async () => {
    hostile('tree', (response, _, bytes) => {
      const files: { size: number; lfs?: object }[] = JSON.parse(String(bytes));
      response.end(
        JSON.stringify(files.map((file) => (file.lfs ? { ...file, lfs: { ...file.lfs, size: 2 ** 52 } } : file))),
      );
    });
    expect(await refusalOf(ID)).toMatch(/model.safetensors has 4503599627.4 MB, and the disk of .* has .* left; free/);
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
