/** Options of this experiment that say what is fair, and its presets. */
import { Option } from '@commander-js/extra-typings';
import { rewardWeightsOption } from '../lib/cli/options.ts';
import { ATTRIBUTES } from '../tasks/vignettes/profiles.ts';
import { GROUPS, REWARDS } from './task.ts';

const attribute = () =>
  new Option('--attribute <name>', 'whose levels are to be treated alike')
    .choices(ATTRIBUTES)
    .default('race_ethnicity' as const);

const group = () =>
  new Option('--group <kind>', 'twins of a patient, samples of one vignette, or a control: one reward for all')
    .choices(GROUPS)
    .default('counterfactual' as const);

const rewardWeights = () => rewardWeightsOption(REWARDS);

/** What a run with a model of the hub has for defaults: an adapter, and completions with room for other words. */
const REAL = { loraRank: 8, learningRate: 5e-5, maxNewTokens: 100 };

/** What `--preset` changes of the defaults. */
const PRESETS = {
  test: { maxSteps: 2, batchSize: 4, numSamples: 96, evalSteps: 0 },
  small: {},
  medium: { ...REAL, modelName: 'Qwen/Qwen2.5-0.5B-Instruct', maxSteps: 50, batchSize: 4, numSamples: 288 },
  large: { ...REAL, modelName: 'Qwen/Qwen2.5-1.5B-Instruct', maxSteps: 200, batchSize: 8, loraRank: 16 },
};
type Preset = keyof typeof PRESETS;

const preset = () =>
  new Option('--preset <name>', 'other defaults; medium and large are for a GPU')
    .choices(Object.keys(PRESETS) as Preset[])
    .default('small' as const);

/** The defaults that go with a preset, or with a model that is not the bundled one. */
export const defaultsOf = ({ preset, isBundled }: { preset: Preset; isBundled: boolean }) => ({
  ...(isBundled ? {} : REAL),
  ...PRESETS[preset],
});

export const fairnessOptions = { attribute, group, rewardWeights, preset };
