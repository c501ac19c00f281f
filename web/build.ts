/**
 * Writes a page that trains in the browser: files for any host of static pages.
 *
 *   npm run web:build -- --output <folder>
 */
import { createHash } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join, relative } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import { build, type Plugin, transform } from 'esbuild';
import { createCommand as base } from '../experiment_base/train.ts';
import { createCommand as drgrpo } from '../experiment_drgrpo/train.ts';
import { filesOf } from '../lib/checkpoint/checkpoint.ts';
import { runMain } from '../lib/cli/main.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';
import { colourVariables, DARK, LIGHT } from '../lib/run/document.ts';

const HERE = import.meta.dirname;
const ROOT = join(HERE, '..');
const WASM = join(ROOT, 'node_modules/@tensorflow/tfjs-backend-wasm/dist');

/** The page's files, by their names. */
export type PageFiles = Map<string, Uint8Array>;

/** What tells files from those of another version. */
function hashOf(files: PageFiles): string {
  const hash = createHash('sha256');
  for (const [name, content] of files) hash.update(name).update(content);
  return hash.digest('hex').slice(0, 16);
}

const at = (name: string) => join(HERE, 'stand_ins', name);

/** What a module of Node's is in a browser. */
const NODE: Record<string, string> = {
  'node:path': at('path.ts'),
  'node:buffer': at('buffer.ts'),
  'node:fs': at('files.ts'),
  'node:fs/promises': at('files.ts'),
};
/** Files of lib/ that have another in their place. */
const REPLACED = /^lib\/(checkpoint\/hub|backend\/gpus|hashes)\.ts$/;
/** What only a command line or a run's folder needs. */
const LEFT_OUT =
  /^lib\/(cli\/.*|run\/(start|run|progress)|environments\/task|user_module|backend\/tensorflow|machine)\.ts$/;
/** What is taken from these throws, but for `runMain`, with which a train.ts ends: nobody has started it. */
const NOTHING = `module.exports = Object.create(new Proxy({}, {
  get: (_, name) => () => {
    if (name !== 'runMain') throw new Error(name + ' is not there in a browser');
  },
}));`;

/** Bundles what was written for Node. */
const forBrowsers = (node: Record<string, string>): Plugin => ({
  name: 'for browsers',
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^node:/ }, ({ path }) => ({ path: node[path] ?? at('node.ts') }));
    onResolve({ filter: /^@tensorflow\/tfjs$/ }, () => ({ path: at('tfjs.ts') }));
    onResolve({ filter: /^\.\.?\// }, ({ path, resolveDir }) => {
      const file = relative(ROOT, join(resolveDir, path));
      if (REPLACED.test(file)) return { path: at('lib.ts') };
      return LEFT_OUT.test(file) ? { path: file, namespace: 'left out' } : undefined;
    });
    onResolve({ filter: /^(@commander-js\/extra-typings|yaml|koffi)$/ }, ({ path }) => ({
      path,
      namespace: 'left out',
    }));
    onLoad({ filter: /.*/, namespace: 'left out' }, () => ({
      contents: NOTHING,
      loader: 'js',
    }));
  },
});

async function bundle(entry: string, node: Record<string, string>, define: Record<string, string> = {}) {
  const { outputFiles } = await build({
    entryPoints: [join(ROOT, entry)],
    ...{ bundle: true, write: false, minify: true, format: 'esm', target: 'es2022', platform: 'browser' },
    inject: [at('globals.ts')],
    plugins: [forBrowsers(node)],
    define: {
      // In memory the files lie as in the repository.
      'import.meta.url': '"file:///lib/ops/bundled.ts"',
      // Steps would be made in time with the screen, and none in a tab that nobody looks at.
      requestAnimationFrame: 'undefined',
      ...define,
    },
    logLevel: 'error',
  });
  return outputFiles[0].contents;
}

/** A script of the page itself, which was written for browsers. */
async function bundleForPage(entry: string, define: Record<string, string> = {}): Promise<string> {
  const { outputFiles } = await build({
    entryPoints: [join(ROOT, entry)],
    ...{ bundle: true, write: false, minify: true, format: 'iife', target: 'es2022', define },
  });
  if (/<\/script/i.test(outputFiles[0].text)) throw new Error(`${entry} would end its own script`);
  return outputFiles[0].text.trim();
}

/** What the page may load: what is its own; and the frame of the user's reward its script and that function. */
export const policyOf = (frame: string): string =>
  `default-src 'none'; script-src 'self' 'wasm-unsafe-eval' 'sha256-${createHash('sha256').update(frame).digest('base64')}'; worker-src 'self' blob:; style-src 'self'; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'`;

const shell = (policy: string) => `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="description" content="A language model learns sums by GRPO in your browser, with nothing installed.">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page.css">
<title>GRPO in a browser tab</title>
</head>
<body>
<main></main>
<noscript>This page needs JavaScript.</noscript>
<script src="page.js"></script>
</body>
</html>
`;

/** What the worker fetches: the model, the sums, and the project's own kernels. */
async function dataFiles(): Promise<string[]> {
  const model = [...(await filesOf(join(ROOT, 'models/tiny')))].map((name) => `models/tiny/${name}`);
  const kernels = ['kernels', 'kernels_shared'].map((name) => `lib/dist/${name}.wasm`);
  return [...model, 'tasks/sums/train.jsonl', 'tasks/sums/test.jsonl', ...kernels];
}

/**
 * All of the page.
 * @throws {UserError} if the kernels were not built
 */
export async function buildPage(): Promise<PageFiles> {
  const data = await dataFiles();
  const defaults = {
    experiment_base: parseOptions(base(), ['', '']),
    experiment_drgrpo: parseOptions(drgrpo(), ['', '']),
  };
  const read = (file: string) =>
    readFile(file).catch(() => {
      throw new UserError(`${relative(ROOT, file)} is missing: run \`npm install\` and \`npm run build\``);
    });
  const frame = await bundleForPage('web/page/frame.ts');
  const { batchSize, numGenerations, numIterations, learningRate, ...others } = defaults.experiment_base;
  const { clipRange, klCoef, seed, maxSteps } = others;
  const shown = { batchSize, numGenerations, numIterations, learningRate, clipRange, klCoef, seed, maxSteps };
  const text = (content: string) => new TextEncoder().encode(content);
  const wasm = ['tfjs-backend-wasm-simd.wasm', 'tfjs-backend-wasm-threaded-simd.wasm'];
  const trainer: PageFiles = new Map<string, Uint8Array>([
    [
      'worker.js',
      await bundle('web/worker.ts', NODE, { DEFAULTS: JSON.stringify(defaults), FILES: JSON.stringify(data) }),
    ],
    ['thread.js', await bundle('lib/ops/thread.ts', { ...NODE, 'node:worker_threads': at('thread.ts') })],
    ...(await Promise.all(wasm.map(async (name) => [name, await read(join(WASM, name))] as const))),
    ...(await Promise.all(data.map(async (name) => [`files/${name}`, await read(join(ROOT, name))] as const))),
  ]);
  const page = await bundleForPage('web/page/page.ts', {
    FRAME: JSON.stringify(frame),
    DEFAULTS: JSON.stringify(shown),
    TRAINER: JSON.stringify(hashOf(trainer)),
  });
  const sheets = ['watch/page/page.css', 'web/page/page.css'].map((file) => readFile(join(ROOT, file), 'utf8'));
  const css = [colourVariables(LIGHT, DARK), ...(await Promise.all(sheets))].join('\n');
  const { code: style } = await transform(css, { loader: 'css', minify: true });
  const files: PageFiles = new Map<string, Uint8Array>([
    ['index.html', text(shell(policyOf(frame)))],
    ['page.js', text(page)],
    ['page.css', text(style)],
    ...trainer,
  ]);
  // The page is kept under the name by which it is asked for.
  const names = [...files.keys()].map((name) => (name === 'index.html' ? './' : name));
  const offline = await bundleForPage('web/page/offline.ts', {
    NAMES: JSON.stringify(names),
    VERSION: JSON.stringify(`grpo-${hashOf(files)}`),
  });
  return files.set('offline.js', text(offline));
}

export const createCommand = () =>
  new Command('web:build')
    .description('Writes a page on which models/tiny learns in the browser: static files, for any host.')
    .option('--output <folder>', 'where to; files of the same names are replaced')
    .helpOption('-h, --help', 'display help for command');

async function main(): Promise<void> {
  const { output } = parseOptions(createCommand());
  if (output === undefined) throw new UserError('name a folder for the page with --output');
  const files = await buildPage();
  for (const [name, content] of files) {
    await mkdir(dirname(join(output, name)), { recursive: true });
    await writeFile(join(output, name), content);
  }
  const bytes = [...files.values()].reduce((sum, { length }) => sum + length, 0);
  console.log(`${output}: ${files.size} files, ${(bytes / 1e6).toFixed(1)} MB`);
}

await runMain(import.meta.url, main);
