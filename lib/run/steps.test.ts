import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import type { Row } from './metrics.ts';
import { followRun, type Run } from './run_folder.ts';
import { runSteps, type StepsOptions } from './steps.ts';
import type { TrainingState } from './training_state.ts';

vi.mock('./interrupt.ts', () => ({
  onInterrupt: () => ({ requested: () => false, dispose: () => {} }), // signals of this process are those of the tests
  sayOnInterrupt: () => () => {},
}));

let printed = '';
beforeEach(() => {
  printed = '';
  vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    printed += text;
    return true;
  });
});
afterEach(() => void vi.restoreAllMocks());

/** Takes the steps of a run that writes nothing, and returns what was logged and how often held-out questions were asked. */
async function take(options: Partial<StepsOptions>, notes: Record<number, string> = {}) {
  const [logged, answered, asked]: [Row[], Row[], number[]] = [[], [], []];
  const run: Run = {
    ...followRun({ experiment: 'experiment_base', folder: 'nowhere', step: 0 }),
    silent: false,
    log: (row) => void logged.push(row),
    answer: (row) => void answered.push(row),
  };
  const around = {
    ...{
      folder: '',
      maxSteps: 40,
      loggingSteps: 10,
      saveSteps: 0,
      saveTotalLimit: 1,
      evalSteps: 20,
      evalOnStart: true,
    },
    ...{ maxNewTokens: 4, shown: { accuracy: 'eval/accuracy', reward: 'reward' }, heldOut: 6 },
    evaluate: async ({ samples }: { samples: number }) => {
      asked.push(samples);
      return { 'eval/accuracy': 0.5 };
    },
    ask: async () => [{ question: '1+1', completion: '2', reward: 1 }],
    ...options,
  };
  const state = { counters: {} } as TrainingState;
  const finished = await runSteps(run, state, around, async (step) => {
    if (notes[step]) state.notes = [notes[step]];
    return { metrics: { reward: step }, samples: [{ question: `${step}+1`, completion: 'x', reward: step }] };
  });
  expect(finished).toBe(true);
  const evaluated = logged.flatMap((row) => ('eval/accuracy' in row ? [row.step] : []));
  return { asked, evaluated, answered: answered.map(({ step }) => step) };
}

it('evaluates thoroughly before the first step and after the last, and greedily on the way', async () => {
  expect(await take({})).toEqual({ asked: [8, 0, 8], evaluated: [0, 20, 40], answered: [0, 40] });
});

it('asks nothing before the first step with --no-eval-on-start', async () => {
  expect(await take({ evalOnStart: false })).toEqual({ asked: [0, 8], evaluated: [20, 40], answered: [40] });
});

it('never evaluates where nothing is held out, and shows no accuracy', async () => {
  expect(await take({ heldOut: 0 })).toEqual({ asked: [], evaluated: [], answered: [] });
  expect(printed).toMatch(/^step 40\/40 · reward 40$/m);
});

it('shows a sample every tenth of the run', async () => {
  await take({});
  const steps = [...printed.matchAll(/^reward \d+: (\d+)\+1 → x$/gm)].map(([, step]) => Number(step));
  expect(steps).toEqual([1, 6, 11, 16, 21, 26, 31, 36]);
});

it('says what there is to say of a step, once, when it happens', async () => {
  await take({}, { 3: 'an update was skipped', 40: 'another' });
  expect(printed.match(/an update was skipped/g)).toHaveLength(1);
  expect(printed.indexOf('step 3: an update was skipped\n')).toBeLessThan(printed.indexOf('step 10/40'));
  expect(printed).toContain('step 40: another\n');
});
