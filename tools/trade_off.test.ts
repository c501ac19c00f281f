import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { NODE, runProcess } from '../testing/processes.ts';
import { runFolder } from './compare_report.ts';

const temp = mkdtempSync(join(tmpdir(), 'trade-off-'));
afterAll(() => rmSync(temp, { recursive: true }));

/** A comparison of two weights over three seeds, whose ratios are given. */
function comparison(name: string, ratios: (number | null)[], options = (_variant: number) => ({})): string {
  const folder = join(temp, name);
  const variants = ['fairness --reward-weights 1,1,0', 'fairness --reward-weights 1,0,1'];
  const [seeds, maxSteps] = [[0, 1, 2], 5];
  for (const [v, variant] of variants.entries()) {
    for (const seed of seeds) {
      const run = runFolder(folder, variant, seed);
      for (const inside of ['final_model', `checkpoint-${maxSteps}`]) mkdirSync(join(run, inside), { recursive: true });
      const write = (file: string, value: object) => writeFileSync(join(run, file), `${JSON.stringify(value)}\n`);
      write('config.json', { options: { rewardWeights: [1, 1 - v, v], ...options(v) } });
      write(`checkpoint-${maxSteps}/training_state.json`, { counters: { seconds: 1 } });
      write('completions.jsonl', { step: 1 });
      const before = { step: 0, 'eval/disparity_ratio': 1.7, 'eval/accuracy': 0.7 };
      const after = { step: maxSteps, 'eval/disparity_ratio': ratios[v], 'eval/accuracy': 1 - v / 2 - seed / 100 };
      writeFileSync(join(run, 'metrics.jsonl'), `${JSON.stringify(before)}\n${JSON.stringify(after)}\n`);
    }
  }
  writeFileSync(
    join(folder, 'compare.json'),
    JSON.stringify({ options: { experiments: variants, seeds, maxSteps }, runOptions: [] }),
  );
  return folder;
}
const tradeOff = (folder: string) => runProcess([...NODE, 'tools/trade_off.ts', '--comparison', folder]);

it('has a line for each weight, and a picture', async () => {
  const folder = comparison('fine', [1.2, 1.01]);
  expect(await tradeOff(folder)).toMatchObject({ code: 0, stderr: '' });
  const lines = readFileSync(join(folder, 'trade_off.md'), 'utf8').trim().split('\n');
  expect(lines.slice(2)).toEqual([
    '| before | 1.700 | 70.0 |',
    '| 0 | 1.200 ± 0.000 | 99.0 ± 2.5 |',
    '| 1 | 1.010 ± 0.000 | 49.0 ± 2.5 |',
  ]);
  expect(readFileSync(join(folder, 'trade_off.svg'), 'utf8')).toContain('w = 1');
});

it('refuses runs of which nobody knows how fair they are, and what is no comparison', async () => {
  const unknown = await tradeOff(comparison('unknown', [1.2, null]));
  expect([unknown.code, unknown.stderr]).toEqual([
    2,
    expect.stringMatching(/^error: .* without a disparity ratio before and after.*\n$/),
  ]);
  const others = await tradeOff(
    comparison('others', [1.2, 1.1], (v) => (v === 0 ? { resume: 'x' } : { batchSize: 4 })),
  );
  expect([others.code, others.stderr]).toEqual([2, expect.stringMatching(/^error: .* differ in --batch-size.*\n$/)]);
  const twice = await tradeOff(comparison('twice', [1.2, 1.1], () => ({ rewardWeights: [1, 1, 1] })));
  expect([twice.code, twice.stderr]).toEqual([
    2,
    expect.stringMatching(/^error: .* two variants with the same weight.*\n$/),
  ]);
  const none = await tradeOff(temp);
  expect([none.code, none.stderr]).toEqual([2, expect.stringMatching(/is not the folder of a comparison/)]);
});
