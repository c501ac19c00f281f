import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { stepOf, writeRun } from '../testing/logs.ts';
import { NODE, runProcess } from '../testing/processes.ts';
import { thinned } from './curves.ts';
import { followLines } from './follow.ts';
import { newestRun, reportOf, serve, watchRuns } from './server.ts';
import { watchRun } from './watched_run.ts';

const temp = mkdtempSync(join(tmpdir(), 'grpo-watch-'));
const at = (...names: string[]) => join(temp, ...names);
afterAll(() => rmSync(temp, { recursive: true, force: true }));

describe('followLines', () => {
  it('gives each complete line once, as the file grows, and begins again where it was replaced', async () => {
    const file = at('lines');
    let seen: string[] = [];
    const read = followLines(
      file,
      (line, begin) => seen.push(`${begin}:${line}`),
      () => {
        seen = [];
      },
    );
    expect(await read()).toBe(false); // there is none
    writeFileSync(file, 'one\ntw');
    expect(await read()).toBe(true);
    expect(seen).toEqual(['0:one']);
    expect(await read()).toBe(false);
    appendFileSync(file, 'o\n');
    await read();
    expect(seen).toEqual(['0:one', '4:two']);
    const long = 'x'.repeat(3 * 2 ** 20); // longer than what is read at once
    appendFileSync(file, `${long}\nend\n`);
    await read();
    expect(seen.slice(2)).toEqual([`8:${long}`, `${8 + long.length + 1}:end`]);
    writeFileSync(`${file}.new`, 'three\n');
    renameSync(`${file}.new`, file);
    expect(await read()).toBe(true);
    expect(seen).toEqual(['0:three']);
    rmSync(file);
    expect(await read()).toBe(true);
    expect(seen).toEqual([]);
  });
});

describe('watchRun', () => {
  it('refuses what is no run, in a sentence', () => {
    expect(() => watchRun(at('nowhere'))).toThrow(/nowhere is not the folder of a run: there is no such folder$/);
    expect(() => watchRun(temp)).toThrow('is not the folder of a run: it has no config.json that a run has written');
  });

  it('reads a step by its place, in groups, and finds a question again', async () => {
    const more = [1, 2].flatMap((i) => [0, 1].map(() => ({ step: 61, question: `q${i}`, completion: 'c', reward: i })));
    writeRun(at('steps'), { steps: 60, samples: more });
    const run = watchRun(at('steps'));
    await run.refresh();
    expect(run.told()).toMatchObject({ state: 'finished', step: 60, maxSteps: 60, groups: 61 });
    const step = (await run.stepAt(1))!;
    expect(step).toMatchObject({ at: 1, step: 2, groups: [{ question: '17+12', answer: '29' }] });
    const { samples } = stepOf(2);
    expect(step.groups[0].rows.map(({ reward, advantage }) => [reward, advantage])).toEqual(
      samples.map(({ reward, advantage }) => [reward, advantage]),
    );
    expect(step.groups[0].rows[0].pieces).toEqual(samples[0].pieces);
    expect((await run.stepAt(60))!.groups.map(({ question, rows }) => [question, rows.length])).toEqual([
      ['q1', 2],
      ['q2', 2],
    ]);
    expect(await run.stepAt(61)).toBeUndefined();
    expect(run.placeOf({ question: '17+12', step: 50 })).toBe(51); // asked in steps 2 and 52
    expect(run.placeOf({ question: 'another', step: 50 })).toBeUndefined();
  });

  it('asks the train.ts of the run what each token weighs in its loss', async () => {
    const G = 8;
    const pushes = async (experiment: string, samples: object[] = []) => {
      writeRun(at(experiment), { steps: 1, experiment, samples: samples as never });
      const run = watchRun(at(experiment));
      await run.refresh();
      const step = await run.stepAt(samples.length > 0 ? 1 : 0, { weighed: true });
      return step!.groups[0].rows.map(({ advantage, weights, logProbs }) => ({
        ...{ advantage: advantage!, weights, length: logProbs!.length },
      }));
    };
    const expectEach = async (experiment: string, weight: (advantage: number, length: number) => number) => {
      for (const { advantage, weights, length } of await pushes(experiment)) {
        expect(weights).toHaveLength(length);
        for (const found of weights!) expect(found).toBeCloseTo(weight(advantage, length), 6);
      }
    };
    await expectEach('experiment_base', (advantage, length) => advantage / length / G);
    await expectEach('experiment_drgrpo', (advantage) => advantage / 32 / G); // L, the default of --max-new-tokens
    await expectEach('experiment_rloo', (advantage) => advantage / G); // a completion is one action
    const [first, second] = [
      { pieces: ['a', 'b', 'c'], log_probs: [-1, null, -2] },
      { pieces: ['d'], log_probs: [-1] },
    ].map((tokens, i) => ({ step: 2, question: 'q', completion: '', reward: i, advantage: 2 * i - 1, ...tokens }));
    const found = await pushes('experiment_multiturn_tool', [first, second]);
    expect(found.map(({ weights }) => weights?.map((weight) => weight + 0))).toEqual([[-0.25, 0, -0.25], [0.5]]);
    expect((await pushes('experiment_of_yesterday'))[0].weights).toBeUndefined();
    expect((await pushes('experiment_base', [{ ...first, advantage: undefined }, second]))[0].weights).toBeUndefined();
  }, 120_000);

  it('says which lines it cannot read, and shows the rest', async () => {
    writeRun(at('damaged'), { steps: 3, finished: false });
    appendFileSync(
      at('damaged', 'completions.jsonl'),
      'not JSON\n{"step":4,"question":{"a":1},"completion":7,"reward":null}\n{"st',
    );
    appendFileSync(at('damaged', 'metrics.jsonl'), '[]\n');
    const run = watchRun(at('damaged'));
    await run.refresh();
    const told = run.told();
    expect(told.state).toBe('stopped');
    expect(told.resume).toBe(`node --import tsx experiment_base/train.ts --resume ${at('damaged')}`);
    expect(told.notices.map(({ text }) => text)).toEqual([
      'metrics.jsonl has lines that cannot be read, and are left out: 1',
      'completions.jsonl has lines that cannot be read, and are left out: 1',
    ]);
    expect((await run.stepAt(3))!.groups).toEqual([
      { question: '{"a":1}', rows: [{ completion: '7', reward: null, rewards: [] }] },
    ]);
  });

  it('starts again where a resumed run has taken back its last steps', async () => {
    writeRun(at('resumed'), { steps: 9 });
    const run = watchRun(at('resumed'));
    await run.refresh();
    writeRun(at('other'), { steps: 5 });
    for (const name of ['metrics.jsonl', 'completions.jsonl']) renameSync(at('other', name), at('resumed', name));
    await run.refresh();
    expect(run.told()).toMatchObject({ step: 5, groups: 5 });
  });
});

it('curves are drawn of means over as many steps as they have no pixels for', () => {
  const entries = Array.from({ length: 10 }, (_, i) => ({
    step: i,
    x: i,
    ...(i === 7 ? { 'eval/accuracy': 0.5 } : {}),
  }));
  expect(thinned(entries, 4)).toEqual([
    { step: 0, x: 0 },
    { step: 4, x: 2.5 },
    { step: 8, x: 6.5, 'eval/accuracy': 0.5 },
    { step: 9, x: 9 },
  ]);
});

describe('the server', () => {
  let server: Awaited<ReturnType<typeof serve>>;
  beforeAll(async () => {
    writeRun(at('served'), { steps: 4 });
    writeRun(at('beside'), { steps: 60, seed: 1 });
    const watched = watchRuns([at('served'), at('beside')]);
    server = await serve(watched, { script: 'script', style: 'style' }, 0);
  });
  afterAll(() => server.close());

  /** Asks as no client that keeps to the rules can: with this path as it is. */
  const ask = (path: string, headers: Record<string, string> = {}, method = 'GET') =>
    new Promise<{ status: number; body: string; headers: Record<string, unknown> }>((resolve, reject) => {
      const port = Number(new URL(server.url).port);
      request({ host: '127.0.0.1', port, path, method, headers }, (response) => {
        let body = '';
        response.on('data', (data) => {
          body += data;
        });
        response.on('end', () => resolve({ status: response.statusCode!, body, headers: response.headers }));
      })
        .on('error', reject)
        .end();
    });

  it('serves its page, what runs have logged, and nothing else', async () => {
    for (const path of ['/', '/page.js', '/page.css']) expect((await ask(path)).status).toBe(200);
    expect(JSON.parse((await ask('/step?run=0&at=3')).body)).toMatchObject({ at: 3, step: 4 });
    expect(JSON.parse((await ask('/like?run=1&other=0&at=3')).body)).toMatchObject({ at: 3, step: 4 });
    for (const query of [
      'run=0&at=4',
      'run=2&at=0',
      'run=0',
      'at=0',
      'run=__proto__&at=0',
      'run=0&at=-1',
      'run=0&at=1e0',
    ]) {
      expect([query, (await ask(`/step?${query}`)).body]).toEqual([query, 'null']);
    }
  });

  it.each([
    '/../served/config.json',
    '/../../../../../../etc/passwd',
    '//etc/passwd',
    '/etc/passwd',
    '/%2e%2e/%2e%2e/etc/passwd',
    '/..%2f..%2fetc%2fpasswd',
    '/served/metrics.jsonl',
    '/step/../../../etc/passwd',
    '/page.js/../../package.json',
    '/constructor',
    '/%00',
    'http://127.0.0.1/etc/passwd',
    '*',
  ])('has nothing at %s', async (path) => {
    const { status, body } = await ask(path);
    expect([404, body]).toEqual([status, 'there is nothing here']);
  });

  it.each([
    ['another host', { host: 'evil.example' }],
    ['a name that was bound to this machine again', { host: 'evil.example:8023' }],
    ['another port of this machine', { host: '127.0.0.1:1' }],
    ['another origin', { origin: 'http://evil.example' }],
    ['the origin of a file', { origin: 'null' }],
    ['another port as origin', { origin: 'http://localhost:1' }],
  ])('refuses %s', async (_, headers) => {
    for (const path of ['/', '/page.js', '/events', '/curves', '/step?run=0&at=0']) {
      expect(await ask(path, headers)).toMatchObject({
        status: 403,
        body: 'this page is for the machine that it runs on',
      });
    }
  });

  it('leaves the folder as it is', async () => {
    const contents = () =>
      readdirSync(at('served')).map((name) => [
        name,
        statSync(at('served', name)).mtimeMs,
        statSync(at('served', name)).size,
      ]);
    const before = contents();
    for (const path of ['/', '/curves', '/step?run=0&at=0']) await ask(path);
    expect(contents()).toEqual(before);
  });

  it('says that its port is taken', async () => {
    const again = serve(watchRuns([at('served')]), { script: '', style: '' }, Number(new URL(server.url).port));
    await expect(again).rejects.toThrow(/^port \d+ cannot be used \(EADDRINUSE\): name another with --port/);
  });

  it('only answers questions, and says what the page may load', async () => {
    for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) expect((await ask('/', {}, method)).status).toBe(405);
    const { headers } = await ask('/');
    expect(headers['content-security-policy']).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self'/);
    expect(headers['content-security-policy']).not.toContain('unsafe');
    expect(headers['x-content-type-options']).toBe('nosniff');
    expect(headers['access-control-allow-origin']).toBeUndefined();
  });

  it('draws seeds together, and other experiments as other lines', async () => {
    writeRun(at('drgrpo'), { steps: 4, experiment: 'experiment_drgrpo' });
    const watched = watchRuns([at('served'), at('beside'), at('drgrpo')]);
    await watched.refresh();
    const { panels, legend } = await watched.curves();
    expect(legend.map(({ name }) => name)).toEqual([
      'base --max-steps 4',
      'base --max-steps 60',
      'drgrpo --max-steps 4',
    ]);
    expect(panels.length).toBeGreaterThan(5);
    expect(panels[0].label).toBe('Reward (batch mean) against step');
    const same = watchRuns([at('served'), at('served')]);
    await same.refresh();
    expect((await same.curves()).legend).toEqual([]);
  });
});

describe('npm run watch', () => {
  it('takes the newest run, wherever it is, and leaves aside what is none', () => {
    expect(() => newestRun(at('runs'))).toThrow(/there is no run below .*runs\/ yet: name the folder of one$/);
    const runs = ['experiment_base/1', 'compare-1/base/seed-0', 'experiment_base/2'].map((name) => at('runs', name));
    for (const [i, folder] of runs.entries()) {
      writeRun(folder, { steps: 1 });
      utimesSync(join(folder, 'config.json'), 1000 + i, 1000 + (i === 1 ? 9 : i));
    }
    mkdirSync(at('runs', 'begun')); // and has written nothing yet
    writeFileSync(at('runs', 'begun', 'config.json'), '{}');
    expect(newestRun(at('runs'))).toBe(at('runs', 'compare-1/base/seed-0'));
  });

  const watch = (...args: string[]) => runProcess([...NODE, 'watch/server.ts', ...args]);

  it('says what is wrong with what it was given', async () => {
    const { code, stderr } = await watch(at('nowhere'));
    expect([code, stderr]).toEqual([
      2,
      `error: ${at('nowhere')} is not the folder of a run: there is no such folder\n`,
    ]);
    const ten = await watch(...Array(10).fill(at('served')));
    expect([ten.code, ten.stderr]).toEqual([2, 'error: 10 runs: name at most 9\n']);
  });

  it('--export writes all of it into one file, in which no text of a run can be anything else', async () => {
    const hostile = { step: 5, question: '</script><script>alert(1)</script>', completion: '<!--<script>', reward: 0 };
    writeRun(at('exported'), { steps: 4, samples: [hostile] });
    const { code, stdout, stderr } = await watch(at('exported'), '--export', at('report.html'));
    expect([code, stdout, stderr]).toEqual([0, `${at('report.html')}\n`, '']);
    const html = readFileSync(at('report.html'), 'utf8');
    expect(html.match(/<script/g)).toHaveLength(2);
    expect(html).not.toContain('alert(1)</script>');
    expect(html).not.toMatch(/(src|href)="(?!data:)/);
  });

  it('a report of a long run has some of its steps, the first and the last among them', async () => {
    writeRun(at('long'), { steps: 1000 });
    const { told, steps, like } = await reportOf(watchRuns([at('long'), at('beside')]));
    expect(told.runs.map(({ groups, allGroups }) => [groups, allGroups])).toEqual([
      [100, 1000],
      [60, 60],
    ]);
    expect([steps[0][0].step, steps[0].at(-1)!.step]).toEqual([1, 1000]);
    const other = steps[1][like[0][1][50]!];
    expect(other.groups[0].question).toBe(steps[0][50].groups[0].question);
  });
});
