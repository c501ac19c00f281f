import { existsSync } from 'node:fs';
import { readdir, readFile, readlink, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import {
  cacheOf,
  expectLoadable,
  FIRST,
  hashOf,
  hub,
  ID,
  isLfs,
  pathsAt,
  printed,
  refusalOf,
  requests,
  root,
  SECOND,
  snapshotOf,
  TOKEN,
  tiny,
} from '../../testing/hub.ts';
import { resolveModel } from './hub.ts';

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
    '../../x',
    'x/../../y',
    'x@../../y',
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

  test('an id too long for a file system: nothing is asked', async () => {
    const id = (length: number) => `${'x'.repeat(length)}/${'y'.repeat(length)}`;
    for (const length of [123, 5000]) {
      expect(await refusalOf(id(length))).toMatch(/^"x+.*: the name is too long for a file system; check the name/);
    }
    expect(requests).toEqual([]);
    expect(await refusalOf(id(122))).toMatch(/has no such model/);
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

  test.each([{}, { weight_map: null }, { weight_map: {} }, { weight_map: 'x' }, { weight_map: ['x.safetensors'] }])(
    'refuses the index %o',
    async (index) => {
      const text = Buffer.from(JSON.stringify({ metadata: {}, ...index }));
      hub.commits[FIRST] = { 'config.json': tiny['config.json'], 'model.safetensors.index.json': text };
      expect(await refusalOf(ID)).toMatch(/"weight_map" must map tensor names to file names, found .*/);
      expect(existsSync(cacheOf('refs', 'main'))).toBe(false);
    },
  );

  test.each([[FIRST], null, 7, {}, 'main'])('refuses the commit %o', async (sha) => {
    hub.hostile = ({ kind, bytes }, response) => {
      if (kind === 'revision') response.end(JSON.stringify({ ...JSON.parse(String(bytes)), sha }));
      return kind === 'revision';
    };
    expect(await refusalOf(ID)).toContain('its answer names no commit');
  });

  test.each([5, 'x', [null], [{}], [{ rfilename: 7 }], [{ rfilename: ['model.safetensors'] }]])(
    'refuses the files %j',
    async (siblings) => {
      hub.hostile = ({ kind, bytes }, response) => {
        if (kind === 'revision') response.end(JSON.stringify({ ...JSON.parse(String(bytes)), siblings }));
        return kind === 'revision';
      };
      expect(await refusalOf(ID)).toMatch(/\(its answer (names no files|is not that of a hub)\)/);
    },
  );

  test.each([
    ['size', '3210680'],
    ['size', -1],
    ['size', 1e300],
    ['oid', ['a'.repeat(40)]],
    ['oid', 'x'],
    ['oid', null],
  ])('refuses a listing where the %s of config.json is %j', async (key, value) => {
    hub.hostile = ({ kind, bytes }, response) => {
      const files: { path: string }[] = kind === 'tree' ? JSON.parse(String(bytes)) : [];
      const changed = files.map((file) => (file.path === 'config.json' ? { ...file, [key]: value } : file));
      if (kind === 'tree') response.end(JSON.stringify(changed));
      return kind === 'tree';
    };
    expect(await refusalOf(ID)).toContain('config.json belongs to the model, but');
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
    requests.length = 0;
    await resolveModel(ID);
    expect(requests.map(({ path }) => path)).toEqual([`/api/models/${ID}/revision/main`]);
  });

  test('fetches of a new commit only what is new', async () => {
    await resolveModel(ID);
    hub.commits[SECOND] = { ...tiny, 'generation_config.json': Buffer.from('{"eos_token_id": 2}') };
    hub.branches.main = SECOND;
    requests.length = 0;
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
    requests.length = 0;
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

  test('another commit than the one that was asked for is not taken', async () => {
    hub.branches[SECOND] = FIRST;
    expect(await refusalOf(`${ID}@${SECOND}`)).toContain('it answers with another commit');
  });

  test('one that does not exist', async () => {
    expect(await refusalOf(`${ID}@v9`)).toContain('the hub has this model, but no revision "v9"');
  });
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

  test.each([
    'nowhere',
    'user:secret@host',
    'ftp://user:secret@host',
    'http://user:secret@',
    'http://host/?key=secret',
  ])('HF_ENDPOINT must be a URL, not %s', async (endpoint) => {
    vi.stubEnv('HF_ENDPOINT', endpoint);
    const message = await refusalOf(ID);
    expect(message).toContain('HF_ENDPOINT must be a URL');
    expect(message).not.toMatch(/user|secret/);
  });

  test.each([true, false])(
    'user and password of HF_ENDPOINT go to it, and are never shown (token: %s)',
    async (token) => {
      const { host } = new URL(process.env.HF_ENDPOINT!);
      vi.stubEnv('HF_ENDPOINT', `http://user:p%40ss@${host}/`);
      if (token) vi.stubEnv('HF_TOKEN', TOKEN);
      await resolveModel(ID);
      const sent = requests.map(({ host, headers }) => [host, headers.authorization]);
      const basic = `Basic ${btoa('user:p@ss')}`;
      expect(sent.every(([host, authorization]) => authorization === (host === 'hub' ? basic : undefined))).toBe(true);
      hub.refusal = { of: 'all', status: 503 };
      await resolveModel(ID);
      expect(printed.at(-1)).toContain(`http://${host} cannot be reached`);
      expect(`${printed} ${await refusalOf('owner/other')}`).not.toMatch(/user|p%40ss|p@ss/);
    },
  );
});
