import { expect, test } from 'vitest';
import { NODE, runProcess } from '../testing/processes.ts';
import { verdict } from './doctor.ts';

test('lists what the machine has, and for what is missing what it would bring', async () => {
  const { code, stdout, stderr } = await runProcess([...NODE, 'tools/doctor.ts']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const [list, verdict] = stdout.trimEnd().split('\n\n');
  const lines = list.split('\n');
  expect(lines.every((line) => /^([✓–] \S| +→ )/.test(line))).toBe(true);
  expect(lines[0]).toBe(`✓ Node                 ${process.versions.node} on ${process.platform} ${process.arch}`);
  expect(stdout).toMatch(/^✓ backend wasm {9}wasm.*; [\d.]+ GFLOP\/s$/m);
  for (const [i, line] of lines.entries()) if (line.startsWith('– backend')) expect(lines[i + 1]).toContain('→');
  expect(verdict).toMatch(/^Ready: `npm start` trains here, on \S.*; [\d.]+ GFLOP\/s.*\.$/);
  const words = list.split(/\s+/);
  const phrases = words.slice(3).map((_, i) => words.slice(i, i + 4).join(' '));
  expect(phrases.filter((phrase, i) => phrases.indexOf(phrase) !== i)).toEqual([]); // nothing is said twice
});

test('the verdict names what is needed first, then the backend that a run would take', () => {
  const finding = (name: string, ok: boolean, needed = false) => ({ name, ok, needed, found: `${name}!` });
  const [node, wasm] = [finding('Node', true, true), finding('backend wasm', true, true)];
  const gpu = [finding('NVIDIA GPU', true), finding('backend tensorflow', true)];
  expect(verdict([node, wasm, finding('MPI', false)])).toBe('Ready: `npm start` trains here, on backend wasm!.');
  expect(verdict([node, wasm, ...gpu])).toContain('on backend tensorflow!.');
  expect(verdict([node, wasm, gpu[0], finding('backend tensorflow', false)])).toContain('on backend wasm!.');
  expect(verdict([node, wasm, finding('disk', false)])).toContain('on backend wasm!; scarce: disk.');
  expect(verdict([finding('Node', false, true), wasm, ...gpu])).toMatch(/^Not ready: .*: Node\.$/);
});
