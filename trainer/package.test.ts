/** The package as those have it who install it: packed, unpacked elsewhere, imported by its name. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { BACKEND, REPOSITORY } from '../testing/processes.ts';

const temp = mkdtempSync(join(tmpdir(), 'package-'));
afterAll(() => rmSync(temp, { recursive: true }));
const packed = join(temp, 'node_modules/grpo-ts');
const tsc = (cwd: string, ...options: string[]) =>
  execFileSync(process.execPath, [join(REPOSITORY, 'node_modules/typescript/bin/tsc'), ...options], {
    ...{ cwd, encoding: 'utf8', stdio: 'pipe' },
  });

const SCRIPT = `import { GRPOTrainer, type RewardInputs } from 'grpo-ts';

const brief = ({ completionIds }: RewardInputs) => completionIds.map((ids) => -ids.length / 10);
const sums = ['47+38-9', '12+30', '88-19', '5+6+7', '90-45', '33+44', '61+18-7', '20+20'];
const trainer = new GRPOTrainer({
  model: ${JSON.stringify(join(REPOSITORY, 'models/tiny'))},
  rewardFuncs: brief,
  args: {
    numGenerations: 4, batchSize: 8, maxSteps: 8, learningRate: 1e-3, maxCompletionLength: 32,
    outputDir: 'out', evalSteps: 0, saveSteps: 0, backend: '${BACKEND}',
  },
  trainDataset: sums.map((sum) => ({ prompt: [{ role: 'user', content: sum }] })),
});
await trainer.train();
await trainer.saveModel('model');
`;

beforeAll(() => {
  // What `npm pack` does first; without the kernels, which other tests are using.
  tsc(REPOSITORY, '-p', 'trainer');
  const pack = ['pack', '--ignore-scripts', '--silent', '--pack-destination', temp];
  const name = execFileSync('npm', pack, { cwd: REPOSITORY, encoding: 'utf8' }).trim();
  execFileSync('tar', ['xzf', join(temp, name), '-C', temp]);
  mkdirSync(dirname(packed), { recursive: true });
  execFileSync('mv', [join(temp, 'package'), packed]);
  const { dependencies, optionalDependencies } = JSON.parse(readFileSync(join(packed, 'package.json'), 'utf8'));
  const types = ['@types/node', '@webgpu/types', '@types/seedrandom', '@types/offscreencanvas'];
  for (const name of [...Object.keys({ ...dependencies, ...optionalDependencies }), ...types]) {
    mkdirSync(dirname(join(temp, 'node_modules', name)), { recursive: true });
    symlinkSync(join(REPOSITORY, 'node_modules', name), join(temp, 'node_modules', name));
  }
  writeFileSync(join(temp, 'package.json'), '{"type":"module"}');
  writeFileSync(join(temp, 'script.ts'), SCRIPT);
}, 120_000);

it('has no tests, no data and no notebooks', () => {
  const files = readdirSync(packed, { recursive: true, encoding: 'utf8' });
  expect(files.filter((file) => /\.test\.|notebooks|\.jsonl|\.ipynb|\.safetensors|(?<!\.d)\.ts$/.test(file))).toEqual(
    [],
  );
  expect(files).toEqual(expect.arrayContaining(['README.md', 'LICENSE', 'lib/dist/kernels.wasm']));
});

it('has types that a strict compiler takes, and trains with a reward of one’s own', () => {
  const options = '--strict --module nodenext --target es2022 --skipLibCheck --rootDir . --outDir .';
  expect(tsc(temp, ...options.split(' '), 'script.ts')).toBe('');
  const said = execFileSync(process.execPath, ['script.js'], { cwd: temp, encoding: 'utf8' });
  expect(said).toContain('model: out/final_model');
  const rewards = readFileSync(join(temp, 'out/metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line): number => JSON.parse(line).reward);
  expect(rewards.at(-1)! - rewards[0]).toBeGreaterThan(0.3); // three tokens fewer
  expect(readdirSync(join(temp, 'model'))).toContain('model.safetensors');
});
