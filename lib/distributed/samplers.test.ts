import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { NODE, runProcess } from '../../testing/processes.ts';
import { readNewerWeights, writeWeights } from './samplers.ts';

const temp = mkdtempSync(join(tmpdir(), 'samplers-'));
afterAll(() => rmSync(temp, { recursive: true }));

it('weights are read as they were written, and only if they are newer', () => {
  const values = Float32Array.of(1.5, -2, 1e-30);
  writeWeights(temp, { version: 7, values });
  expect(readNewerWeights(temp, 6)).toEqual({ version: 7, values });
  expect(readNewerWeights(temp, -1)).toEqual({ version: 7, values });
  expect(readNewerWeights(temp, 7)).toBeUndefined();
});

it('weights are never torn, however often they change while they are read', async () => {
  const folder = mkdtempSync(join(temp, 'torn-'));
  const script = join(temp, 'writer.ts');
  const module = pathToFileURL(join(import.meta.dirname, 'samplers.ts')).href;
  writeFileSync(
    script,
    `import { writeWeights } from '${module}';
    for (let version = 0; version < 400; version++) {
      writeWeights('${folder}', { version, values: new Float32Array(200_000 + version).fill(version) });
    }`,
  );
  let [reads, version] = [0, -1];
  const read = () => {
    let weights: ReturnType<typeof readNewerWeights>;
    try {
      weights = readNewerWeights(folder, version);
    } catch {
      return; // there are none yet
    }
    if (!weights) return;
    expect(weights.version).toBeGreaterThan(version);
    version = weights.version;
    expect(weights.values).toHaveLength(200_000 + version);
    expect(weights.values.every((value) => value === version)).toBe(true);
    reads++;
  };
  const { code } = await runProcess([...NODE, script], {
    during: async (_, ended) => {
      while (!ended()) {
        read();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    },
  });
  expect(code).toBe(0);
  read();
  expect(version).toBe(399);
  expect(reads).toBeGreaterThan(10);
});
