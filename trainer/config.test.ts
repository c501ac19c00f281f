import { expect, it } from 'vitest';
import { type GRPOConfig, optionsOf } from './config.ts';

const parse = (args: GRPOConfig, prompts = 64) => optionsOf(args, { modelName: 'models/tiny', prompts });

it('takes TRL’s names, as the experiments have them', () => {
  const options = parse({
    ...{ beta: 0.04, epsilon: 0.1, epsilonHigh: 0.3, maxCompletionLength: 99, lrSchedulerType: 'cosine', topK: 5 },
    ...{ numIterations: 2, gradientCheckpointing: true, evalOnStart: false, chatTemplateKwargs: { thinking: 'no' } },
  });
  expect(options).toMatchObject({
    ...{ klCoef: 0.04, clipRange: 0.1, clipRangeHigh: 0.3, maxNewTokens: 99, lrScheduler: 'cosine', topK: 5 },
    ...{ numIterations: 2, gradientCheckpointing: true, evalOnStart: false, modelName: 'models/tiny' },
    chatTemplateKwargs: '{"thinking":"no"}',
  });
  expect(parse({ gradientCheckpointing: false, evalOnStart: true })).toMatchObject({ evalOnStart: true });
});

it('has TRL’s defaults where the experiments have those of the bundled model', () => {
  expect(parse({})).toMatchObject({ learningRate: 1e-6, maxNewTokens: 256, klCoef: 0, numGenerations: 8 });
});

it('takes second names, and knows which was given', () => {
  expect(parse({ klCoef: 0.3, beta: undefined, learningRate: undefined, maxNewTokens: 7 })).toMatchObject({
    ...{ klCoef: 0.3, learningRate: 1e-6, maxNewTokens: 7 },
  });
  expect(() => parse({ lossType: 'cispo', clipRange: 0.3 })).toThrow(/there is no option "clipRange"/);
});

it('makes steps of epochs, unless it is told how many', () => {
  expect(parse({}, 64).maxSteps).toBe(6); // 3 epochs of 64 prompts, 32 a step
  expect(parse({ numTrainEpochs: 1, batchSize: 10 }, 64).maxSteps).toBe(7);
  expect(parse({ numTrainEpochs: 0.1 }, 64).maxSteps).toBe(1);
  expect(parse({ maxSteps: 9 }).maxSteps).toBe(9);
});

it('has the options of the loss type, with the defaults of its paper', () => {
  expect(parse({ lossType: 'dapo' })).toMatchObject({ clipRange: 0.2, clipRangeHigh: 0.28 });
  expect(parse({ lossType: 'gspo' })).toMatchObject({ clipRange: 3e-4, clipRangeHigh: 4e-4 });
});

it.each([
  [{ lossType: 'ppo' }, /^lossType must be one of grpo, dr_grpo, .*found "ppo"/],
  [{ learningrate: 1 }, /^args: there is no option "learningrate" for lossType grpo/],
  [{ systemPrompt: 'x' }, /there is no option "systemPrompt"/], // which an experiment has
  [{ numTrainEpochs: -1 }, /^args.numTrainEpochs must be above 0, found -1/],
  [{ rewardTimeout: Number.POSITIVE_INFINITY }, /^args.rewardTimeout must be .* found Infinity/],
  [{ maxResamples: 1 }, /there is no option "maxResamples" for lossType grpo/],
  [{ learningRate: 'fast' }, /^args: option '--learning-rate <x>' argument 'fast' is invalid/],
  [{ learningRate: Number.NaN }, /^args: .*--learning-rate.*NaN/],
  [{ numGenerations: 1 }, /^args: .*--num-generations.*from 2 to/],
  [{ lrSchedulerType: 'steps' }, /^args: .*--lr-scheduler.*steps/],
  [{ lossType: 'cispo', epsilon: 0.2 }, /there is no option "epsilon" for lossType cispo/],
])('refuses %j', (args, message) => {
  expect(() => parse(args as GRPOConfig)).toThrow(message);
});
