import { expect, test } from 'vitest';
import { NODE, runProcess } from './test_process.ts';

test('lists what the machine has, and for what is missing what it would bring', async () => {
  const { code, stdout, stderr } = await runProcess([...NODE, 'tools/doctor.ts']);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  const lines = stdout.trimEnd().split('\n');
  expect(lines.every((line) => /^([✓–] \S| +→ )/.test(line))).toBe(true);
  expect(lines[0]).toBe(`✓ Node                 ${process.versions.node} on ${process.platform} ${process.arch}`);
  expect(stdout).toMatch(/^✓ backend wasm {9}wasm.*; [\d.]+ GFLOP\/s$/m);
  for (const [i, line] of lines.entries()) if (line.startsWith('–')) expect(lines[i + 1]).toContain('→');
});
