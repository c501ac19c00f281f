/** Reports to Weights & Biases, whose part a local server plays. */
import { readdirSync, readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { json } from 'node:stream/consumers';
import { afterAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { at, run, SHORT } from '../../testing/script.ts';
import { readMetrics } from './metrics.ts';
import { createWandb } from './wandb.ts';

const KEY = 'k'.repeat(40);
type Line = { _step: number; reward?: number };
/** What the server has of each run, what it was told of it, and how many requests it still refuses. */
const served = {
  history: new Map<string, Line[]>(),
  summaries: new Map<string, string>(),
  configs: [] as string[],
  complete: 0,
  refusals: 0,
};

const server = createServer(async (request, response) => {
  const body = (await json(request)) as { query?: string; variables?: Record<string, string> } & {
    files?: Record<string, { offset: number; content: string[] }>;
    complete?: boolean;
  };
  const answer = (status: number, value: unknown) => response.writeHead(status).end(JSON.stringify(value));
  const basic = `Basic ${Buffer.from(`api:${KEY}`).toString('base64')}`;
  if (request.headers.authorization !== basic) return answer(401, {});
  if (served.refusals-- > 0) return answer(503, {});
  if (request.url === '/graphql') {
    const { name, project, config } = body.variables!;
    if (!body.query!.startsWith('mutation')) {
      const lines = served.history.get(name);
      return answer(200, {
        data: {
          model: {
            bucket: lines ? { historyLineCount: lines.length, summaryMetrics: served.summaries.get(name) } : null,
          },
        },
      });
    }
    served.configs.push(config);
    served.history.set(name, served.history.get(name) ?? []);
    return answer(200, {
      data: { upsertBucket: { bucket: { name, project: { name: project, entity: { name: 'me' } } } } },
    });
  }
  const lines = served.history.get(/^\/files\/me\/sums\/([^/]+)\/file_stream$/.exec(request.url!)![1])!;
  const sent = body.files?.['wandb-history.jsonl'];
  if (sent) {
    expect(sent.offset).toBe(lines.length); // nothing twice, nothing left out
    served.summaries.set(request.url!.split('/')[4], body.files!['wandb-summary.json'].content[0]);
    lines.push(...sent.content.map((line) => JSON.parse(line) as Line));
  }
  if (body.complete) served.complete++;
  return answer(200, {});
}).listen(0);
afterAll(() => server.close());

const url = () => `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
beforeEach(() => {
  Object.assign(process.env, { WANDB_API_KEY: KEY, WANDB_BASE_URL: url() });
  delete process.env.WANDB_MODE;
  Object.assign(served, { history: new Map(), summaries: new Map(), configs: [], complete: 0, refusals: 0 });
});
afterAll(() => {
  for (const name of ['WANDB_API_KEY', 'WANDB_BASE_URL', 'WANDB_MODE']) delete process.env[name];
});
const report = (folder: string) => ['--output-dir', folder, '--report-to', 'wandb', '--wandb-project', 'sums'];
const stepsOf = () => [...served.history.values()].map((lines) => lines.map(({ _step }) => _step));

describe('reports', () => {
  it('every step once, also of a run that went back and on, and tells nobody the key', async () => {
    const folder = at('wandb');
    const first = await run([...SHORT, '--max-steps', '4', '--save-steps', '2', ...report(folder)]);
    expect(first).toMatchObject({ code: 0, stderr: '' });
    expect(first.stdout).toMatch(/wandb: http:\/\/127\.0\.0\.1:\d+\/me\/sums\/runs\//);
    expect(stepsOf()).toEqual([[0, 1, 2, 3, 4]]);
    const second = await run(['--resume', join(folder, 'checkpoint-2'), '--max-steps', '6']);
    expect(second).toMatchObject({ code: 0, stderr: '' });
    expect(stepsOf()).toEqual([[0, 1, 2, 3, 4, 5, 6]]);
    expect(served.complete).toBe(2);
    const lines = [...served.history.values()][0];
    for (const { step, ...entry } of readMetrics(join(folder, 'metrics.jsonl'))) {
      const { _step, ...sent } = lines[step];
      // Speeds of steps that were made again are those of the first time.
      const steady = (all: object) =>
        Object.fromEntries(Object.entries(all).filter(([name]) => !/second|time/.test(name)));
      expect(steady(sent)).toMatchObject(steady(entry)); // and what step 4 said as the last one
    }
    expect(JSON.parse(served.configs[0])).toMatchObject({ learningRate: { value: 0.01 } });
    const kept = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile());
    const texts = kept.map(({ name }) => readFileSync(join(folder, name), 'utf8'));
    expect([first.stdout, second.stdout, ...served.configs, ...texts].join()).not.toContain(KEY);
  });

  it('each step that is logged, also where others are logged after the resume', async () => {
    const folder = at('cadence');
    const first = [...SHORT, '--max-steps', '4', '--save-steps', '2', '--eval-size', '0', ...report(folder)];
    expect(await run(first)).toMatchObject({ code: 0 });
    const back = ['--resume', join(folder, 'checkpoint-2'), '--max-steps', '8', '--logging-steps', '2'];
    expect(await run(back)).toMatchObject({ code: 0 });
    expect(stepsOf()).toEqual([[1, 2, 3, 4, 6, 8]]);
  });

  it('later, where the server did not answer at first', async () => {
    served.refusals = 2;
    const said = await run([...SHORT, '--max-steps', '2', '--eval-size', '0', ...report(at('later'))]);
    expect(said).toMatchObject({ code: 0 });
    expect(said.stdout).toMatch(
      /wandb: 127\.0\.0\.1:\d+ answers 503: it is tried again; metrics\.jsonl has all there is/,
    );
    expect(stepsOf()).toEqual([[1, 2]]);
  });
});

it('trains all the same where the key is refused, and says so', async () => {
  process.env.WANDB_API_KEY = 'wrong';
  const said = await run([...SHORT, '--max-steps', '2', '--eval-size', '0', ...report(at('refused'))]);
  expect(said).toMatchObject({ code: 0, stderr: '' });
  expect(said.stdout).toMatch(/wandb: 2 lines are not sent \(.* answers 401\)/);
  expect(stepsOf()).toEqual([]);
});

it.each([
  [
    'without a key',
    { WANDB_API_KEY: '' },
    /^wandb: there is no WANDB_API_KEY, in the environment or in \.env: nothing is sent/,
  ],
  ['to no URL', { WANDB_BASE_URL: 'nowhere' }, /^wandb: WANDB_BASE_URL is no URL: nothing is sent/],
  ['offline', { WANDB_MODE: 'offline' }, /^wandb: WANDB_MODE is offline: nothing is sent/],
])('sends nothing %s, and says so', async (_, environment, message) => {
  Object.assign(process.env, environment);
  const log = vi.spyOn(console, 'log').mockImplementation(() => {});
  expect(await createWandb({}, { folder: 'x', id: 'y', history: () => [{ step: 1 }] })).toBeUndefined();
  expect(log.mock.calls[0][0]).toMatch(message);
  log.mockRestore();
});
