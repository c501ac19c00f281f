import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { soloCommunicator } from '../distributed/communicator.ts';
import type { TrainingState } from '../training/state.ts';
import type { LogEntry } from './metrics.ts';
import { createRun, type StepOptions } from './run.ts';
import { followRun, type RunFolder } from './run_folder.ts';

const signals = vi.hoisted(() => ({ pressed: false }));
vi.mock('./interrupt.ts', () => ({
  onInterrupt: () => ({ requested: () => signals.pressed, dispose: () => {} }), // signals of this process are those of the tests
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
async function take(
  {
    stopAt,
    failAt,
    updatesBefore = 0,
    ...options
  }: Partial<StepOptions> & { heldOut?: number; stopAt?: number; failAt?: number; updatesBefore?: number } = {},
  notes: Record<number, string> = {},
) {
  signals.pressed = false;
  const [logged, answered, asked]: [LogEntry[], LogEntry[], number[]] = [[], [], []];
  let reports = 0;
  const checkpoints: number[] = [];
  const folder: RunFolder = {
    ...followRun({ experiment: 'experiment_base', folder: 'nowhere', step: 0 }),
    silent: false,
    history: () => [{ step: 0 }],
    log: (entry) => void logged.push(entry),
    answer: (entry) => void answered.push(entry),
    report: async () => void reports++,
    saveCheckpoint: async (step) => void checkpoints.push(step),
  };
  const state = {
    counters: {},
    optimizer: { step: 0 },
    model: { params: {}, config: { eosTokenIds: [2] } },
  } as TrainingState;
  const context = {
    ...{ shown: { accuracy: 'eval/accuracy', reward: 'reward' }, heldOut: options.heldOut ?? 6 },
    ...{ source: { folder: '', dtypes: {} }, tokenizer: { decode: String }, communicator: soloCommunicator() },
  };
  const every = { loggingSteps: 10, saveSteps: 0, saveTotalLimit: 1, evalSteps: 20 };
  const run = createRun(folder, state, context, {
    ...{
      maxSteps: 40,
      maxNewTokens: 4,
      numGenerations: 2,
      batchSize: 3,
      learningRate: 1e-3,
      evalOnStart: true,
      evalSamples: 8,
      saveDtype: 'float32',
      ...every,
      ...options,
    },
  });
  const ask = async ({ samples }: { samples: number }) => {
    asked.push(samples);
    return { metrics: { 'eval/accuracy': 0.5 }, answers: [{ question: '1+1', completion: '2', reward: 1 }] };
  };
  await run.evaluateFirst(ask);
  for await (const step of run.steps()) {
    if (step.number === failAt) {
      state.optimizer.step += updatesBefore;
      throw Object.assign(new Error('no reward'), { checkpoints });
    }
    state.optimizer.step++;
    if (notes[step.number]) state.notes = [notes[step.number]];
    step.log({ reward: step.number }, [{ question: `${step.number}+1`, completion: 'x', reward: step.number }]);
    await step.evaluate(ask);
    signals.pressed = step.number === stopAt;
  }
  const evaluated = logged.flatMap((entry) => ('eval/accuracy' in entry ? [entry.step] : []));
  return {
    asked,
    evaluated,
    logged: logged.map(({ step }) => step),
    answered: answered.map(({ step }) => step),
    reports,
  };
}

it('evaluates thoroughly before the first step and after the last, and greedily on the way', async () => {
  expect(await take({})).toMatchObject({ asked: [8, 0, 8], evaluated: [0, 20, 40], answered: [0, 40], reports: 1 });
});

it('asks nothing before the first step with --no-eval-on-start', async () => {
  expect(await take({ evalOnStart: false })).toMatchObject({
    asked: [0, 8],
    evaluated: [20, 40],
    answered: [40],
    reports: 1,
  });
});

it('never evaluates where nothing is held out, and shows no accuracy', async () => {
  expect(await take({ heldOut: 0 })).toMatchObject({ asked: [], evaluated: [], answered: [], reports: 1 });
  expect(printed).toMatch(/^step 40\/40 · reward 40$/m);
});

it('logs the last step, however seldom it logs', async () => {
  expect((await take({ heldOut: 0, maxSteps: 3, loggingSteps: 100 })).logged).toEqual([3]);
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

it('keeps the steps before one that fails, and says how to go on', async () => {
  await expect(take({ failAt: 15 })).rejects.toMatchObject({ message: 'no reward', checkpoints: [14] });
  expect(printed).toMatch(/^the 14 steps before are saved; to continue: node .*--resume nowhere$/m);
  // What a checkpoint has already needs no other; what a step has changed in part is not kept.
  await expect(take({ failAt: 15, saveSteps: 7 })).rejects.toMatchObject({ checkpoints: [7, 14] });
  await expect(take({ failAt: 15, updatesBefore: 1 })).rejects.toMatchObject({ checkpoints: [] });
  await expect(take({ failAt: 1 })).rejects.toMatchObject({ checkpoints: [] });
});

it('draws the curves also where Ctrl-C ends it', async () => {
  const stopped = await take({ stopAt: 30 });
  expect(process.exitCode).toBe(130);
  process.exitCode = undefined;
  expect(stopped).toMatchObject({ asked: [8, 0], evaluated: [0, 20], answered: [0], reports: 1 });
});
