/**
 * The notebooks' kernel: TypeScript in Jupyter, through tslab.
 *
 *   npm run notebooks                        starts Jupyter, with the kernel
 *   npm run notebooks -- --allow-root        the same: what is no option here is Jupyter's
 *   npm run notebooks -- --install           only installs the kernel for you, so that VS Code and every Jupyter find it
 *   npm run notebooks:execute                runs all notebooks, into notebooks/executed/; fails on any error in them
 *   npm run notebooks:execute -- --only base,ddp --in-place
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { delimiter, isAbsolute, join, resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import { Command } from '@commander-js/extra-typings';
import { runMain } from '../lib/cli/main.ts';
import { examples, parseOptions } from '../lib/cli/options.ts';
import { UserError } from '../lib/errors.ts';

const FOLDER = 'notebooks';
const OWN_JUPYTER = join(FOLDER, '.jupyter');
const EXECUTED = join(FOLDER, 'executed');
/** Notebooks that are executed at a time. */
const SIDE_BY_SIDE = 2;

/** Debian's and Homebrew's Python let nothing be installed but into a virtual environment: it is looked for here. */
const [VENV, VENV_BIN] = ['.venv', join('.venv', process.platform === 'win32' ? 'Scripts' : 'bin')];
const intoVenv = (name: string) => `\`python3 -m venv ${VENV} && ${join(VENV_BIN, 'pip')} install ${name}\``;
/** Debian's packages belong to its own Python, which need not be the first. */
const PYTHONS = process.env.PYTHON
  ? [process.env.PYTHON]
  : [join(VENV_BIN, 'python'), 'python3', 'python', '/usr/bin/python3'];

/** A Jupyter that starts, of this project's virtual environment or else of the system: what to call, and its version. */
export function findJupyter(): { command: string; app: 'lab' | 'notebook'; version: string } | undefined {
  for (const command of [join(VENV_BIN, 'jupyter'), 'jupyter']) {
    for (const app of ['lab', 'notebook'] as const) {
      const { status, stdout } = spawnSync(command, [app, '--version'], { encoding: 'utf8' });
      if (status === 0) return { command, app, version: stdout.trim() };
    }
  }
  return undefined;
}

/** Writes the description of the kernel below a folder in which Jupyter looks for such. */
function installKernel(jupyter: string): void {
  const folder = join(jupyter, 'kernels', 'tslab');
  mkdirSync(folder, { recursive: true });
  const argv = [
    process.execPath,
    resolve('node_modules/tslab/bin/tslab'),
    'kernel',
    '--config-path',
    '{connection_file}',
  ];
  const description = { argv, display_name: 'TypeScript', language: 'typescript' };
  writeFileSync(join(folder, 'kernel.json'), `${JSON.stringify(description, null, 2)}\n`);
}

/** Where Jupyter looks for what a user has installed (jupyter_core's rules). */
function userJupyter(): string {
  const { JUPYTER_DATA_DIR, APPDATA, XDG_DATA_HOME } = process.env;
  if (JUPYTER_DATA_DIR) return JUPYTER_DATA_DIR;
  if (process.platform === 'darwin') return join(homedir(), 'Library', 'Jupyter');
  if (process.platform === 'win32') return join(APPDATA ?? homedir(), 'jupyter');
  return join(XDG_DATA_HOME ?? join(homedir(), '.local', 'share'), 'jupyter');
}

/** Any tslab takes the one of the project that it runs in, so a kernel that is there already will do. */
function installForUser(): void {
  const folder = userJupyter();
  const known = join(folder, 'kernels', 'tslab', 'kernel.json');
  const isThere = (word: string) => !isAbsolute(word) || existsSync(word);
  const found = existsSync(known) && (JSON.parse(readFileSync(known, 'utf8')).argv as string[]).every(isThere);
  if (!found) installKernel(folder);
  console.log(`${found ? 'found' : 'installed'}: ${known}. In VS Code choose the kernel "TypeScript".`);
}

/** A program's environment, in which Jupyter finds the kernel of this project. */
const environment = () => ({
  ...process.env,
  JUPYTER_PATH: [resolve(OWN_JUPYTER), process.env.JUPYTER_PATH].filter(Boolean).join(delimiter),
});

/** @param more - options of Jupyter's own; they come last, so that they win */
async function startJupyter(more: string[]): Promise<void> {
  const found = findJupyter();
  if (!found) {
    throw new UserError(
      `no Jupyter was found: ${intoVenv('jupyterlab')} brings one, then run this again; or run \`npm run notebooks -- --install\`, open a notebook in VS Code (with its Jupyter extension), and choose the kernel "TypeScript"`,
    );
  }
  const { command, app } = found;
  // Its root is the repository, so that links out of a notebook work.
  const page =
    app === 'lab' ? ['--LabApp.default_url=/lab/tree/notebooks'] : ['--JupyterNotebookApp.default_url=/tree/notebooks'];
  const options = [app, '--ServerApp.root_dir=.', ...page, ...more];
  const jupyter = spawn(command, options, { stdio: 'inherit', env: environment() });
  // A terminal sends Ctrl-C to Jupyter as well, which asks whether it is meant: it ends when that does.
  process.on('SIGINT', () => {});
  process.on('SIGTERM', () => jupyter.kill('SIGTERM'));
  const [code] = await once(jupyter, 'close');
  process.exitCode = code ?? 1;
}

type Output = { output_type: string; name?: string; text?: string | string[]; data?: Record<string, unknown> };
export type Notebook = {
  cells: { cell_type: string; source?: string | string[]; execution_count?: number; outputs?: Output[] }[];
};

/**
 * What went wrong in a notebook that was executed, if anything did. The kernel names no errors: they are on stderr, and
 * cells after one do not run.
 */
export function mistakeInNotebook({ cells }: Notebook): string | undefined {
  for (const [i, { outputs = [] }] of cells.entries()) {
    const bad = outputs.find(({ output_type, name }) => output_type === 'error' || name === 'stderr');
    if (bad) return `cell ${i + 1}: ${[bad.text ?? 'an error'].flat().join('').trim()}`;
  }
  return undefined;
}

/** A Python that can execute notebooks. */
function findPython(): string {
  const python = PYTHONS.find(
    (name) => spawnSync(name, ['-m', 'nbconvert', '--version'], { stdio: 'ignore' }).status === 0,
  );
  if (python !== undefined) return python;
  throw new UserError(
    `${PYTHONS[0]} has no nbconvert, which executes notebooks: \`apt-get install jupyter-client python3-nbclient python3-nbconvert\`, or ${intoVenv('nbconvert ipykernel')} (the environment variable PYTHON names another Python)`,
  );
}

/** Runs a notebook from top to bottom and writes it with its outputs into a folder, unless there is a mistake. */
export async function execute(python: string, name: string, folder: string): Promise<void> {
  const began = performance.now();
  const scratch = mkdtempSync(join(tmpdir(), 'notebook-'));
  const file = join(FOLDER, `${name}.ipynb`);
  console.log(`${file} …`);
  const options = ['--ExecutePreprocessor.kernel_name=tslab', '--ExecutePreprocessor.timeout=1800'];
  const convert = async () => {
    const nbconvert = spawn(
      python,
      [
        ...'-m nbconvert --to notebook --execute --allow-errors'.split(' '),
        ...options,
        ...['--ExecutePreprocessor.record_timing=False', '--output-dir', scratch, file],
      ],
      { env: environment(), stdio: ['ignore', 'ignore', 'pipe'] },
    );
    const [stderr, [status]] = await Promise.all([text(nbconvert.stderr), once(nbconvert, 'close')]);
    return { status, stderr };
  };
  try {
    let { status, stderr } = await convert();
    if (stderr.includes('Kernel died')) {
      // Another program may have taken the ports that Jupyter chose for it: seen where several kernels start at once.
      console.error(`${stderr}\n${file}: the kernel died; once more`);
      ({ status, stderr } = await convert());
    }
    if (status !== 0) {
      console.error(stderr); // what the kernel said at its end, if it has died
      throw new UserError(`${file} could not be executed: ${stderr.trim().split('\n').at(-1)}`);
    }
    const notebook = JSON.parse(readFileSync(join(scratch, `${name}.ipynb`), 'utf8')) as Notebook;
    const mistake = mistakeInNotebook(notebook);
    if (mistake !== undefined) throw new UserError(`${file}, ${mistake}`);
    // The kernel does not number what it runs.
    for (const [i, cell] of notebook.cells.filter((cell) => cell.cell_type === 'code').entries()) {
      cell.execution_count = i + 1;
    }
    mkdirSync(folder, { recursive: true });
    const written = join(folder, `${name}.ipynb`);
    writeFileSync(written, `${JSON.stringify(notebook, null, 1)}\n`);
    console.log(`${written}: ${((performance.now() - began) / 1000).toFixed(0)} s`);
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/**
 * Executes notebooks, a few side by side. After a mistake those that are under way are finished, and no other is begun.
 * @throws {UserError} for the first mistake
 */
export async function executeAll(python: string, names: string[], folder: string): Promise<void> {
  const waiting = [...names];
  const mistakes: unknown[] = [];
  const work = async () => {
    for (let name = waiting.shift(); name !== undefined && mistakes.length === 0; name = waiting.shift()) {
      await execute(python, name, folder).catch((error) => mistakes.push(error));
    }
  };
  await Promise.all(Array.from({ length: SIDE_BY_SIDE }, work));
  if (mistakes.length > 0) throw mistakes[0];
}

export const createCommand = () =>
  new Command('notebooks')
    .description('Starts Jupyter with the kernel for TypeScript, and with what options of its own it is given.')
    .usage("[options] [Jupyter's options]")
    .addHelpText(
      'after',
      examples(
        'npm run notebooks',
        'npm run notebooks -- --allow-root',
        'npm run notebooks:execute -- --only base,ddp',
      ),
    )
    .allowUnknownOption()
    .allowExcessArguments()
    .option('--execute', `run notebooks without a browser, and write them with their outputs to ${EXECUTED}`)
    .option('--only <names>', 'with --execute: some of them, as in base,ddp', (names: string) => names.split(','))
    .option('--in-place', 'with --execute: write the outputs into the notebooks themselves')
    .option('--install', 'install the kernel for you, not for this project only');

async function main(): Promise<void> {
  const command = createCommand();
  const options = parseOptions(command);
  const [more, alone] = [command.args, options.only ? '--only' : options.inPlace ? '--in-place' : undefined];
  if (alone && !options.execute) {
    throw new UserError(`${alone} goes with --execute: \`npm run notebooks:execute -- --only base,ddp\``);
  }
  if (more.length > 0 && (options.execute || options.install)) {
    throw new UserError(`unknown option '${more[0]}': Jupyter's own go with \`npm run notebooks\` alone, see --help`);
  }
  installKernel(OWN_JUPYTER);
  if (options.install) return installForUser();
  if (!options.execute) return startJupyter(more);
  const all = readdirSync(FOLDER).flatMap((file) => (file.endsWith('.ipynb') ? [file.slice(0, -'.ipynb'.length)] : []));
  const names = options.only ?? all;
  const unknown = names.find((name) => !all.includes(name));
  if (unknown !== undefined) throw new UserError(`there is no notebook "${unknown}": there are ${all.join(', ')}`);
  await executeAll(findPython(), names, options.inPlace ? FOLDER : EXECUTED);
}

await runMain(import.meta.url, main);
