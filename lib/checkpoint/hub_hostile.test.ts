/** A hub, or whoever sits between, that means harm: a sentence, or the right files, and always an end. CASES=200 for more. */
import { readdir, readFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { expect, test, vi } from 'vitest';
import { type Answer, FIRST, hashOf, hub, ID, printed, requests, SECOND, TOKEN } from '../../testing/hub.ts';
import { mistakeIn } from '../errors.ts';
import { uniform } from '../random.ts';
import { resolveModel } from './hub.ts';

const CASES = Number(process.env.CASES ?? 24);
const SEED = Number(process.env.SEED ?? 12);
const LIMITS = { patience: 300, minBytes: 1000, maxAnswer: 1e6, pauses: [1, 1, 1] };

/** A whole number from 0 to below n. */
type Draw = (n: number) => number;
const pick = <T>(items: T[], draw: Draw): T => items[draw(items.length)];

const GENUINE: Record<string, Buffer> = {
  'config.json': Buffer.from('{"model_type": "llama"}'),
  'tokenizer.json': Buffer.from(JSON.stringify({ text: 'x'.repeat(3000) })),
  'model.safetensors': Buffer.from(Array.from({ length: 20_000 }, (_, i) => (i * i) % 251)),
};

type Way = (answer: Answer, response: ServerResponse, draw: Draw) => void;

const send = (bytes: Buffer | string, headers: Record<string, string | number> = {}, status = 200): Way => {
  return (_, response) => void response.writeHead(status, headers).end(bytes);
};
const sendChanged =
  (change: (bytes: Buffer, draw: Draw) => Buffer): Way =>
  ({ bytes }, response, draw) =>
    void response.end(change(bytes, draw));
const repeat = (chunk: Buffer, milliseconds: number): Way => {
  return (_, response) => {
    const timer = setInterval(() => response.write(chunk), milliseconds);
    response.on('close', () => clearInterval(timer));
  };
};

const ANY: Record<string, Way> = {
  'no answer': () => {},
  'cut at once': (_, response) => void response.destroy(),
  'cut in the middle': ({ bytes }, response) =>
    void response.write(bytes.subarray(0, bytes.length / 2), () => setTimeout(() => response.destroy(), 5)),
  'a byte now and then': repeat(Buffer.from(' '), 20),
  'no end': repeat(Buffer.alloc(2 ** 18, ' '), 1),
  'no HTTP': (_, response) => void response.socket!.end('220 smtp.example.org ready\r\n'),
  'an error': (answer, response, draw) => {
    const code = pick(['', 'RevisionNotFound', 'GatedRepo', 'RepoNotFound', '\u001b[31m'.slice(1)], draw);
    send('{"error": "no"}', { 'X-Error-Code': code }, pick([400, 401, 403, 404, 416, 429, 500, 503], draw))(
      answer,
      response,
      draw,
    );
  },
  'nothing to see': send('', {}, 204),
  'a redirect to itself': (answer, response, draw) => send('', { Location: answer.url }, 302)(answer, response, draw),
  'a redirect elsewhere': (answer, response, draw) =>
    send('', { Location: pick(['http://127.0.0.1:1/', 'file:///etc/passwd', 'http://[', ''], draw) }, 302)(
      answer,
      response,
      draw,
    ),
  'no gzip': (answer, response, draw) => send(answer.bytes, { 'Content-Encoding': 'gzip' })(answer, response, draw),
  'a gzip bomb': send(gzipSync(Buffer.alloc(5e7, ' ')), { 'Content-Encoding': 'gzip' }),
  'less than its header says': ({ bytes }, response) =>
    void response.writeHead(200, { 'Content-Length': bytes.length + 10 }).write(bytes),
  'a long header': send('[]', { 'X-Long': 'x'.repeat(2 ** 17) }),
  nothing: send(''),
  'a page of a hotel': send('<html>\u001b[31mLog in\n\n\n\n\n</html>'),
  'a byte short': sendChanged((bytes) => bytes.subarray(0, -1)),
  'a byte too many': sendChanged((bytes) => Buffer.concat([bytes, Buffer.from('x')])),
  'another byte': sendChanged((bytes, draw) => {
    const copy = Buffer.from(bytes);
    copy[draw(copy.length)] ^= 1 << draw(8);
    return copy;
  }),
};

const VALUES: unknown[] = [
  ...[null, true, '', 'x', -1, 0.5, 1e15, 1e300, [], {}, [[]], ['a'.repeat(40)], { path: 'config.json' }, SECOND],
  ...['../../../x', '\n\n\n\n\n\u001b[31m', 'x'.repeat(10_000), [FIRST], hashOf(Buffer.from('x'), true), 1, 0],
];
/** A JSON value with one of its parts replaced, left out or doubled. */
function mutated(json: unknown, draw: Draw): unknown {
  if (typeof json !== 'object' || json === null || draw(6) === 0) return pick(VALUES, draw);
  const keys = Object.keys(json);
  const key = pick(keys, draw);
  if (Array.isArray(json) && draw(8) === 0) return [...json, json[Number(key)]];
  if (draw(8) === 0) {
    return Array.isArray(json) ? json.toSpliced(Number(key), 1) : { ...json, [key]: undefined };
  }
  const value = mutated((json as Record<string, unknown>)[key], draw);
  return Array.isArray(json) ? json.with(Number(key), value) : { ...json, [key]: value };
}
const QUESTION: Record<string, Way> = {
  'wrong JSON': sendChanged((bytes, draw) => Buffer.from(JSON.stringify(mutated(JSON.parse(String(bytes)), draw)))),
  'deep JSON': send('['.repeat(300_000)),
  'pages without end': ({ url, bytes }, response, draw) => {
    const next = `<http://${response.req.headers.host}${url}>; rel="next"`;
    response.setHeader('Link', next).end(draw(2) === 0 ? bytes : '[]');
  },
  'a page elsewhere': ({ bytes }, response, draw) => {
    const place = pick(['http://127.0.0.1:1/', 'http://user:secret@127.0.0.1/', 'http://['], draw);
    response.setHeader('Link', `<${place}>; rel="next"`).end(bytes);
  },
};
const FILE: Record<string, Way> = {
  'a part': ({ bytes }, response) => void response.writeHead(206).end(bytes.subarray(7)),
  'a part as the whole': ({ bytes }, response) => void response.end(bytes.subarray(7)),
  'another file': sendChanged((bytes) => Buffer.from(Object.values(GENUINE).find((other) => other !== bytes)!)),
};

/** Files of a folder, each of which must be genuine. */
async function expectGenuine(folder: string): Promise<void> {
  const files = await readdir(folder);
  expect(files).toContain('model.safetensors');
  for (const file of files) expect((await readFile(join(folder, file))).equals(GENUINE[file]), file).toBe(true);
}

test.each(Array.from({ length: CASES }, (_, number) => number))('case %i', { timeout: 30_000 }, async (number) => {
  let draws = 0;
  const draw: Draw = (n) => Math.floor(n * uniform(SEED, number, draws++));
  const kind = pick(['revision', 'tree', 'small file', 'weights'] as const, draw);
  const isQuestion = kind === 'revision' || kind === 'tree';
  const ways = { ...ANY, ...(isQuestion ? QUESTION : FILE) };
  // Half of the questions that are answered have a wrong JSON, of which there are many.
  const way = isQuestion && draw(2) === 0 ? 'wrong JSON' : pick(Object.keys(ways), draw);
  let times = pick([1, Infinity], draw);
  const what = `${kind}: ${way}${times === 1 ? ', once' : ''}`;

  vi.stubEnv('HF_TOKEN', TOKEN);
  hub.commits = { [FIRST]: GENUINE };
  const answered: ServerResponse[] = [];
  hub.hostile = (answer, response) => {
    if (answer.kind !== kind || times-- <= 0) return false;
    answered.push(response);
    ways[way](answer, response, draw);
    return true;
  };
  const started = performance.now();
  const name = draw(2) === 0 ? ID : `${ID}@${FIRST}`;
  const outcome = await resolveModel(name, { limits: LIMITS }).catch((error) => error);
  const seconds = (performance.now() - started) / 1000;
  for (const response of answered) response.destroy();
  if (process.env.CASES)
    process.stderr.write(`${number} ${what} ${seconds.toFixed(1)}s ${outcome.message ?? 'genuine'}\n`);

  expect(seconds, what).toBeLessThan(10);
  const message = typeof outcome === 'string' ? '' : mistakeIn(outcome);
  expect(message, `${what}: ${outcome.stack}`).toBeDefined();
  const said = [...printed, message].join('\n');
  expect(said.split('\n').length, what).toBeLessThanOrEqual(4);
  expect(said, what).not.toMatch(/[^\P{Cc}\n]|secret|undefined|is not a function|not iterable|Cannot read|\[object/u);
  expect(JSON.stringify(requests.filter(({ host }) => host === 'cdn'))).not.toContain(TOKEN);
  if (typeof outcome === 'string') await expectGenuine(outcome);

  // Whatever was sent, nothing of it is left that a hub that means well could not mend.
  hub.hostile = undefined;
  await expectGenuine(await resolveModel(ID));
});
