/**
 * Serves the page that trains in the browser to this machine.
 *
 *   npm run web
 *   npm run web -- --port 0
 */
import { Command } from '@commander-js/extra-typings';
import { runMain } from '../lib/cli/main.ts';
import { integer, parseOptions } from '../lib/cli/options.ts';
import { LOCAL_HEADERS, listenLocally, refuse } from '../watch/local_server.ts';
import { buildPage, type PageFiles } from './build.ts';

export const createCommand = () =>
  new Command('web')
    .description('Serves a page on which models/tiny learns, in the browser that shows it.')
    .option('--port <n>', 'of the page; 0: any that is free', integer({ min: 0, max: 65535 }), 8024)
    .helpOption('-h, --help', 'display help for command');

const TYPES: Record<string, string> = {
  html: 'text/html; charset=utf-8',
  css: 'text/css; charset=utf-8',
  js: 'text/javascript; charset=utf-8',
  json: 'application/json',
  wasm: 'application/wasm',
};

/** Memory can be shared among threads only where nothing of another place is in the page. */
const HEADERS = { ...LOCAL_HEADERS, 'Cross-Origin-Embedder-Policy': 'require-corp' };

/** What the page may load, it says itself, wherever it is served; its workers are told here. */
const policyFor = (name: string): string =>
  name.endsWith('.js')
    ? "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self'; worker-src 'self'"
    : "frame-ancestors 'none'";

/**
 * Serves what was built, and nothing else: files are found by their names in the list, and none is read.
 * @returns the page's address, and what ends it
 * @throws {UserError} if the port is taken
 */
export const serve = (files: PageFiles, port: number): Promise<{ url: string; close: () => Promise<void> }> =>
  listenLocally(port, (request, response) => {
    const [path] = (request.url ?? '').split('?', 1);
    const name = path === '/' ? 'index.html' : path.slice(1);
    const content = files.get(name);
    if (!content) return refuse(response, 404, 'there is nothing here');
    const type = TYPES[name.split('.').at(-1)!] ?? 'application/octet-stream';
    const own = { 'Content-Type': type, 'Content-Length': content.length, 'Content-Security-Policy': policyFor(name) };
    response.writeHead(200, { ...HEADERS, ...own }).end(content);
  });

async function main(): Promise<void> {
  const { port } = parseOptions(createCommand());
  const { url } = await serve(await buildPage(), port);
  console.log(`${url} (Ctrl-C ends it)`);
}

await runMain(import.meta.url, main);
