/**
 * What this machine has for a run, and for each thing that is missing what it would bring and how to get it.
 *
 *   npm run doctor
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, statfsSync } from 'node:fs';
import { arch, availableParallelism, cpus, freemem, platform } from 'node:os';
import { join } from 'node:path';
import { Command } from '@commander-js/extra-typings';
import { BACKENDS } from '../lib/backend/index.ts';
import { runMain } from '../lib/cli/main.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { machineMemory, physicalCores } from '../lib/machine.ts';
import { findJupyter } from './notebooks.ts';

/** `needed`: without it there is no training. */
export type Finding = { ok: boolean; name: string; found: string; advice?: string; needed?: boolean };

const REPOSITORY = join(import.meta.dirname, '..');
const GB = 2 ** 30;

/** The speed of a matrix product on one backend, in a process of its own. */
const TRIAL = `
import * as tf from '@tensorflow/tfjs';
import { initBackend } from './lib/index.ts';
const [, backend] = process.argv;
const description = await initBackend(backend);
const [a, b] = [tf.randomNormal([512, 512]), tf.randomNormal([512, 512])];
const seconds = [];
for (let i = 0; i < 6; i++) {
  const began = performance.now();
  const product = tf.matMul(a, b);
  await product.data();
  seconds.push((performance.now() - began) / 1000);
}
console.log(JSON.stringify({ description, gflops: (2 * 512 ** 3) / Math.min(...seconds) / 1e9 }));`;

function tryBackend(backend: string): Finding {
  const name = `backend ${backend}`;
  const needed = backend === 'wasm';
  const flags = ['--import', 'tsx', '--input-type=module', '-e', TRIAL, backend];
  const { status, stdout, stderr } = spawnSync(process.execPath, flags, { cwd: REPOSITORY, encoding: 'utf8' });
  if (status === 0) {
    const { description, gflops } = JSON.parse(stdout.trim().split('\n').at(-1)!);
    return { ok: true, name, found: `${description}; ${gflops.toPrecision(3)} GFLOP/s`, needed };
  }
  const reason = /(?:UserError|Error): (.*)/.exec(stderr)?.[1] ?? `ended with exit code ${status}`;
  const found = reason.replace(`${name} `, '').replace(/,? or use --backend wasm$/, '');
  return { ok: false, name, found, advice: BRINGS[backend], needed };
}

const BRINGS: Record<string, string> = {
  tensorflow: 'trains on an NVIDIA GPU, and models that do not fit into the 4 GB of wasm',
  wasm: 'run npm ci again',
  webgpu: 'trains on any GPU',
};

/** The first line that a command prints, or undefined if there is no such command. */
function version(command: string, ...flags: string[]): string | undefined {
  const { status, stdout } = spawnSync(command, flags, { encoding: 'utf8' });
  return status === 0 ? stdout.trim().split('\n')[0] : undefined;
}

function findings(): Finding[] {
  const { engines } = JSON.parse(readFileSync(join(REPOSITORY, 'package.json'), 'utf8'));
  const [major, minor] = process.versions.node.split('.').map(Number);
  const memory = machineMemory() / GB;
  const cores = physicalCores();
  const { bavail, bsize } = statfsSync(REPOSITORY);
  const disk = (bavail * bsize) / GB;
  const gpu = version('nvidia-smi', '--query-gpu=name,memory.total', '--format=csv,noheader');
  const mpi = version('mpirun', '--version');
  const tool = (name: string, found: string | undefined, advice: string): Finding =>
    found === undefined ? { ok: false, name, found: 'not found', advice } : { ok: true, name, found };
  return [
    {
      ok: major > 20 || (major === 20 && minor >= 19),
      name: 'Node',
      found: `${process.versions.node} on ${platform()} ${arch()}`,
      advice: `expected ${engines.node}: get it from nodejs.org`,
      needed: true,
    },
    {
      ok: cores >= 2,
      name: 'processor',
      found: `${cores} ${cores === 1 ? 'core' : 'cores'} for this process (${availableParallelism()} logical; ${cpus()[0]?.model.trim()})`,
      advice: 'with a single core a run takes about twice as long as with two',
    },
    {
      ok: memory >= 4,
      name: 'memory',
      found: `${memory.toFixed(1)} GB, of which ${(Math.min(freemem(), machineMemory()) / GB).toFixed(1)} free`,
      advice: 'a run of the bundled model takes about 1 GB: close other programs',
    },
    {
      ok: disk >= 2,
      name: 'disk',
      found: `${disk.toFixed(1)} GB free here`,
      advice:
        'checkpoints need room: a run of the bundled model takes 50 MB, one of a larger model many times its size',
    },
    ...BACKENDS.filter((name) => name !== 'auto' && name !== 'cpu').map(tryBackend),
    { ok: gpu !== undefined, name: 'NVIDIA GPU', found: gpu ?? 'not found' },
    tool('MPI', mpi, 'experiment_ddp over several machines: apt-get install openmpi-bin, or brew install open-mpi'),
    tool(
      'Jupyter',
      findJupyter()?.version,
      'npm run notebooks says how to get it (VS Code does without: npm run notebooks -- --install)',
    ),
  ];
}

/** What all findings come to, in a sentence. */
export function verdict(findings: Finding[]): string {
  const names = (those: Finding[]) => those.map(({ name }) => name).join(', ');
  const lacking = findings.filter(({ ok, needed }) => !ok && needed);
  if (lacking.length > 0) return `Not ready: nothing can be trained here before this is mended: ${names(lacking)}.`;
  const found = (name: string) => findings.find((finding) => finding.name === name && finding.ok)?.found;
  const backend = (found('NVIDIA GPU') && found('backend tensorflow')) ?? found('backend wasm');
  const scarce = findings.filter(({ ok, name }) => !ok && ['processor', 'memory', 'disk'].includes(name));
  return `Ready: \`npm start\` trains here, on ${backend}${scarce.length > 0 ? `; scarce: ${names(scarce)}` : ''}.`;
}

function main(): void {
  parseOptions(new Command('doctor').description('Says what this machine has for a run, and what would help.'));
  const all = findings();
  for (const { ok, name, found, advice } of all) {
    console.log(`${ok ? '✓' : '–'} ${name.padEnd(20)} ${found}`);
    if (!ok && advice) console.log(`  ${''.padEnd(20)} → ${advice}`);
  }
  console.log(`\n${verdict(all)}`);
}

await runMain(import.meta.url, main);
