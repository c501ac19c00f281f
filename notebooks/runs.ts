/** Short runs of the experiments' scripts, for notebooks that compare several. */
import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readJsonLines } from '../lib/dist/index.js';

/** What a run has written: its metrics, step by step, and the first group of each step. */
export type Run = { name: string; rows: Record<string, number>[]; samples: Sample[] };
type Sample = { step: number; question: string; answer: string; completion: string; reward: number };

const folder = mkdtempSync(join(tmpdir(), 'notebook-runs-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

/**
 * Trains in a process of its own, as a terminal does: `node --import tsx experiment_<experiment>/train.ts <flags>`.
 * @param name - what the notebook calls it, unlike any other run of its
 */
export async function train(name: string, experiment: string, flags: string): Promise<Run> {
  const output = join(folder, encodeURIComponent(name));
  const words = ['--import', 'tsx', `experiment_${experiment}/train.ts`, ...flags.split(' ').filter(Boolean)];
  const child = spawn(process.execPath, [...words, '--output-dir', output]);
  const said: string[] = [];
  child.stdout.resume();
  child.stderr.on('data', (chunk) => said.push(String(chunk)));
  const code = await new Promise((resolve) => child.on('close', resolve));
  if (code !== 0) throw new Error(`${name}: ${said.join('')}`);
  const rows = readJsonLines(join(output, 'metrics.jsonl'), (row) => row as Record<string, number>);
  const samples = readJsonLines(join(output, 'completions.jsonl'), (row) => row as Sample);
  const [first, last] = [rows[0], rows[rows.length - 1]].map((row) => (100 * row['eval/accuracy']).toFixed(1));
  console.log(`${name}: right answers to held-out questions ${first} → ${last} %`);
  return { name, rows, samples };
}
