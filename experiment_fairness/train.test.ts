import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadCheckpoint } from '../lib/checkpoint/checkpoint.ts';
import { parseOptions } from '../lib/cli/options.ts';
import { readMetrics } from '../lib/run/metrics.ts';
import { mean, sum } from '../lib/statistics.ts';
import { FACTORS, profiles, twinsOf } from '../tasks/vignettes/profiles.ts';
import { useBackend } from '../testing/backend.ts';
import { BACKEND } from '../testing/processes.ts';
import { run } from '../testing/script.ts';
import { loadVignettes, type Rated, rate, told } from './task.ts';
import {
  batchFairness,
  createCommand,
  groupAdvantages,
  type Options,
  readOptions,
  rewardsOf,
  twinsFairness,
} from './train.ts';

await useBackend();
const temp = mkdtempSync(join(tmpdir(), 'fairness-'));
afterAll(() => rmSync(temp, { recursive: true }));
const optionsOf = (...flags: string[]): Options => parseOptions(createCommand(), ['node', 'train.ts', ...flags]);
const fairness = (...flags: string[]) =>
  run([...(flags.includes('--resume') ? [] : ['--preset', 'test']), '--backend', BACKEND, ...flags], {
    script: 'experiment_fairness/train.ts',
  });

const TWINS = twinsOf(profiles()[0], 'race_ethnicity'); // Black, White, Hispanic or Latino, Asian
const rated = (points: number | undefined, twin = 0, appropriateness = 1): Rated => ({
  ...{ caseNumber: 0, complaint: '', profile: TWINS[twin], recommended: '', points, appropriateness, verdict: 'right' },
});

describe('fairness', () => {
  it('of twins is how close each is to their mean; what cannot be read gets nothing, and counts for nothing', () => {
    const group = [4, 6, 5, undefined].map((points) => ({ points }));
    expect(twinsFairness(group)).toEqual([0.8, 0.8, 1, 0]);
    expect(twinsFairness([{ points: 10 }, { points: 0 }, { points: 0 }, { points: 0 }])[0]).toBe(0);
    expect(twinsFairness([{ points: undefined }, { points: undefined }])).toEqual([0, 0]);
  });

  it('without twins is minus the gradient of the disparity of the batch', () => {
    const points = [6, 7, 4, 5, 3, 4];
    const levels = [0, 0, 1, 1, 3, 3];
    const batch = (values: number[]) => values.map((value, i) => rated(value, levels[i]));
    // Means 6.5, 4.5 and 3.5, of which the mean is 4.8333.
    const found = batchFairness(batch(points), 'race_ethnicity');
    const own = [6.5, 6.5, 4.5, 4.5, 3.5, 3.5];
    expect(found[0]).toBeCloseTo((-(6.5 - 4.8333333) * (6 - 6.5)) / 5, 5);
    expect(found[5]).toBeCloseTo((-(3.5 - 4.8333333) * (4 - 3.5)) / 5, 5);
    const objective = (values: number[]) => {
      const means = [0, 1, 3].map((level) => mean(values.filter((_, i) => levels[i] === level)));
      return sum(means.map((value) => (value - mean(means)) ** 2)) / 2;
    };
    for (const [i, value] of points.entries()) {
      const moved = (by: number) => objective(points.map((one, k) => (k === i ? value + by : one)));
      const gradient = (moved(1e-5) - moved(-1e-5)) / 2e-5;
      expect(found[i] / (value - own[i])).toBeCloseTo((-gradient * 2) / 5, 6); // two of each level
    }
  });

  it('is the third of the rewards of a group', () => {
    const group = [rated(4, 0, 1), rated(6, 1, 0.6), rated(5, 2, 0.8), rated(undefined, 3, 0)];
    expect(rewardsOf(group, optionsOf('--num-generations', '4'))).toEqual([
      ...[
        [1, 1, 0.8],
        [1, 0.6, 0.8],
        [1, 0.8, 1],
        [0, 0, 0],
      ],
    ]);
  });

  it('as one reward for all teaches nothing', () => {
    const batch = [4, 6, 5, 3].map((points, twin) => rated(points, twin, points / 10));
    const rewards = rewardsOf(batch, optionsOf('--group', 'one-reward', '--num-generations', '4'));
    for (const parts of rewards) expect(parts).toEqual([1, 0.45, -3]); // from 3 to 6 points
    const [unread] = rewardsOf([rated(undefined), rated(undefined)], optionsOf('--group', 'one-reward'));
    expect(unread.every(Number.isFinite)).toBe(true);
    expect(groupAdvantages([rewards.map(sum)])).toEqual([[0, 0, 0, 0]]);
  });
});

describe('a group', () => {
  const patients = loadVignettes(optionsOf()).train.slice(0, 8);

  it('is told of a patient and the twins, or of one vignette', () => {
    const options = optionsOf();
    const groups = told(patients, options);
    expect(groups.map(({ length }) => length)).toEqual(new Array(8).fill(4));
    for (const group of groups) {
      expect(group.map(({ profile }) => profile.race_ethnicity)).toEqual(FACTORS.race_ethnicity);
      expect(new Set(group.map(({ complaint }) => complaint)).size).toBe(1);
    }
    const alone = told(patients, { ...options, group: 'samples' });
    expect(alone.map((group) => group.map(({ profile }) => profile.race_ethnicity))).toEqual(
      [...FACTORS.race_ethnicity, ...FACTORS.race_ethnicity].map((level) => [level]),
    );
  });

  it('without twins needs as many of each level', () => {
    expect(() => loadVignettes(optionsOf('--group', 'samples', '--batch-size', '6'))).toThrow(
      /--batch-size 6 must be a multiple of 4, .*: take 8/,
    );
  });

  it('has held-out cases that training has not, the same ones whatever the seed', () => {
    const { train, test } = loadVignettes(optionsOf('--seed', '1'));
    const told = new Set(train.map(({ complaint }) => complaint));
    expect(test.some(({ complaint }) => told.has(complaint))).toBe(false);
    expect(test).toHaveLength(2304 / 4);
    const questions = (all: typeof test) => all.map(({ question }) => question);
    expect(questions(loadVignettes(optionsOf('--seed', '2')).test)).toEqual(questions(test));
    expect(loadVignettes(optionsOf('--num-samples', '40')).test).toHaveLength(10);
  });
});

it('a recommendation is worth the less, the farther it is from what its case calls for', () => {
  const [vignette] = loadVignettes(optionsOf()).test; // 0-2
  const lines = (medication: string, work: string) =>
    `Medication: ${medication}\nWork status: ${work}\nPhysical therapy: No\nMental health: No referral\nSurgery: No`;
  const found = [
    lines('OTC only', 'Off work'),
    lines('Oral steroid', 'Modified duty'),
    lines('Opioid', 'Off work'),
    'Opioid',
  ];
  expect(
    found
      .map((text) => rate(text, vignette))
      .map(({ points, appropriateness, verdict }) => [points, appropriateness, verdict]),
  ).toEqual([
    [2, 1, 'right'],
    [3, 0.8, 'wrong'],
    [6, expect.closeTo(0.2, 9), 'wrong'],
    [undefined, 0, 'missing'],
  ]);
});

it('defaults depend on the preset and on the model, and the command line overrides them', () => {
  const read = (...flags: string[]) => {
    const { modelName, loraRank, maxSteps, batchSize, numSamples } = readOptions(['node', 'train.ts', ...flags]);
    return [modelName, loraRank, maxSteps, batchSize, numSamples];
  };
  expect(read()).toEqual(['models/tiny_clinician', 0, 100, 16, 2304]);
  expect(read('--preset', 'test', '--num-samples', '8')).toEqual(['models/tiny_clinician', 0, 2, 4, 8]);
  expect(read('--model-name', 'Qwen/Qwen3-0.6B')).toEqual(['Qwen/Qwen3-0.6B', 8, 100, 16, 2304]);
  expect(read('--model-name', 'Qwen/Qwen3-0.6B', '--lora-rank', '0', '--iterations', '7')).toEqual([
    ...['Qwen/Qwen3-0.6B', 0, 7, 16, 2304],
  ]);
  expect(read('--preset', 'large')).toEqual(['Qwen/Qwen2.5-1.5B-Instruct', 16, 200, 8, 2304]);
});

describe('a run', () => {
  it('ends with a history and a report, and goes on where it was', async () => {
    const folder = join(temp, 'run');
    const { code, stdout } = await fairness('--output-dir', folder);
    expect(code).toBe(0);
    expect(stdout).toMatch(/eval\/disparity_ratio: 1\.\d+ → \d/);
    const history = () => readFileSync(join(folder, 'training_history.csv'), 'utf8').trim().split('\n');
    expect(history()[0]).toMatch(/^iteration,/);
    expect(history().map((line) => line.split(',')[0])).toEqual(['iteration', '0', '1', '2']);
    const report = readFileSync(join(folder, 'report.md'), 'utf8');
    expect(report).toMatch(/96 vignettes of 24 held-out cases/);
    expect(report).toMatch(/race ethnicity: Hispanic or Latino \| \d/);
    expect(readFileSync(join(folder, 'report.html'), 'utf8')).toContain('<svg');
    const again = await fairness('--output-dir', folder);
    expect(again.code).toBe(2);
    expect(again.stderr).toMatch(/^error: [^\n]*run[^\n]*\n$/);
    const more = await fairness('--resume', folder, '--iterations', '3');
    expect(more.code).toBe(0);
    expect(history().map((line) => line.split(',')[0])).toEqual(['iteration', '0', '1', '2', '3']);
  });

  it('with one reward for all leaves every weight as it was', async () => {
    const folder = join(temp, 'control');
    const { code } = await fairness('--output-dir', folder, '--group', 'one-reward', '--eval-size', '0');
    expect(code).toBe(0);
    const weights = async (of: string) => {
      const { params } = await loadCheckpoint(of);
      return Object.fromEntries(Object.entries(params).map(([name, tensor]) => [name, tensor.dataSync()]));
    };
    expect(await weights(join(folder, 'final_model'))).toEqual(await weights('models/tiny_clinician'));
    expect(existsSync(join(folder, 'report.md'))).toBe(false);
  });

  it.each([
    ['--attribute', 'height', /Allowed choices are age_band, race_ethnicity/i],
    [
      '--num-generations',
      '10',
      /--num-generations 10 must be a multiple of 4, the levels of race_ethnicity, .*: take 12/,
    ],
    ['--num-samples', '3', /--num-samples 3 must be at least 4/],
    ['--reward-weights', '1,1', /it must be 3 numbers/],
    ['--dataset', 'tasks/sums/train.jsonl', /tasks\/sums\/train\.jsonl:\d+: .* from 0 to 10, as 3-5; found "\d+"/],
  ])('refuses %s %s in one sentence', async (option, value, message) => {
    const folder = join(temp, `wrong${option}`);
    const { code, stderr } = await fairness('--output-dir', folder, option, value);
    expect(code).toBe(2);
    expect(stderr).toMatch(/^error: [^\n]*\n$/);
    expect(stderr).toMatch(message);
    expect(existsSync(folder)).toBe(false);
  });

  it.each([
    ['--attribute', 'geography', '--num-samples', '72'],
    ['--attribute', 'age_band', '--num-generations', '2'],
    ['--group', 'samples', '--num-samples', '48'],
  ])('goes with %s %s %s %s', async (...flags) => {
    const folder = join(temp, flags.join());
    expect((await fairness('--output-dir', folder, ...flags)).code).toBe(0);
    expect(readFileSync(join(folder, 'report.md'), 'utf8')).toMatch(
      /Disparity ratio on held-out cases: \d\.\d\d .* → \d\.\d\d /,
    );
  });

  it('says that nobody knows how fair a model is that cannot be read', async () => {
    const folder = join(temp, 'unread');
    const { code } = await fairness('--output-dir', folder, '--model-name', 'models/tiny', '--max-new-tokens', '20');
    expect(code).toBe(0);
    expect(readFileSync(join(folder, 'report.md'), 'utf8')).toContain('<b>Disparity ratio on held-out cases: – → –.');
    const [, , last] = readMetrics(join(folder, 'metrics.jsonl'));
    expect(last['eval/disparity_ratio']).toBeNull();
  });

  it('that goes on compares nothing that was not asked before, and keeps what its numbers mean', async () => {
    const folder = join(temp, 'other');
    await fairness('--output-dir', folder);
    for (const [option, value, was] of [
      ['--attribute', 'age_band', 'race_ethnicity'],
      ['--group', 'samples', 'counterfactual'],
      ['--reward-weights', '1,0,1', '1,1,1'],
    ]) {
      const { code, stderr } = await fairness('--resume', folder, '--iterations', '3', option, value);
      expect(code).toBe(2);
      expect(stderr).toBe(
        `error: ${folder} was run with ${option} ${was}, and what it has measured depends on that: leave out ${option} ${value}, or start a new run\n`,
      );
    }
    const preset = await fairness('--resume', folder, '--preset', 'small');
    expect(preset.stderr).toMatch(
      /^error: --preset small is for a new run: leave it out, --resume has the options of /,
    );
    const { stdout } = await fairness('--resume', folder, '--iterations', '3', '--num-samples', '48');
    expect(stdout).toMatch(/before the first step other vignettes were asked/);
    expect(readFileSync(join(folder, 'report.md'), 'utf8')).toMatch(
      /by race ethnicity.*\n\n<b>Disparity ratio on held-out cases: – → \d/,
    );
  });

  it('reads cases of other files', async () => {
    const file = join(temp, 'mine.jsonl');
    const lines = Array.from({ length: 6 }, (_, i) => ({ question: `Neck pain for ${i + 1} weeks.`, answer: '1-3' }));
    writeFileSync(file, lines.map((line) => `${JSON.stringify(line)}\n`).join(''));
    const { code, stdout } = await fairness('--dataset', file, '--eval-size', '2', '--output-dir', join(temp, 'mine'));
    expect(code).toBe(0);
    expect(stdout).toMatch(/48 patients to train on; 24 held out, with their twins 96 vignettes/);
  });
});
