/** The end of a run: the model that it has trained, and what became of it. */
import { dtypeNamed, type SaveDtype, saveCheckpoint } from '../checkpoint/checkpoint.ts';
import { writeLora } from '../checkpoint/lora_files.ts';
import type { Pretrained } from '../checkpoint/pretrained.ts';
import { roundingLoss } from '../checkpoint/rounding.ts';
import { mistakeIn } from '../errors.ts';
import { mergeLora } from '../model/lora.ts';
import { quoted } from '../text.ts';
import type { TrainingState } from '../training/state.ts';
import { answerLines } from './evaluation.ts';
import { briefly, duration } from './progress.ts';
import { howToResume, type RunFolder } from './run_folder.ts';

export type FinalModelOptions = { mergeAdapter?: boolean | undefined; saveDtype?: SaveDtype };

/**
 * Saves final_model and the curves, and says where they are, what every evaluation gave before and after, and what rounding
 * took away. Of a policy with an adapter, final_model is the adapter, or with `mergeAdapter` the whole model with the
 * adapter merged into it.
 * @param source - the checkpoint that the run started from: its folder, and how it stores each parameter
 * @param options.saveDtype - how a whole model is stored; `auto` as the initial one is
 */
export async function finishRun(
  run: RunFolder,
  { model, counters }: TrainingState,
  { folder: source, dtypes }: Pick<Pretrained, 'folder' | 'dtypes'>,
  { mergeAdapter, saveDtype = 'auto' }: FinalModelOptions,
): Promise<void> {
  if (run.silent) return;
  const adapter = mergeAdapter ? undefined : model.lora;
  const params = adapter ? {} : mergeLora(model);
  const dtype = dtypeNamed(saveDtype) ?? dtypes;
  const folder = await run.saveFinalModel((folder) =>
    adapter ? writeLora(folder, adapter) : saveCheckpoint(folder, { source, params }, { dtype }),
  );
  await run.report();
  const entries = run.history();
  const [before, after] = [entries.find(({ step }) => step === 0), entries.at(-1)!];
  for (const name of Object.keys(after).filter((name) => name.startsWith('eval/'))) {
    console.log(`${name}: ${before && name in before ? `${briefly(before[name])} → ` : ''}${briefly(after[name])}`);
  }
  for (const line of answerLines(run.answers())) console.log(line);
  if (counters.skipped > 0) console.log(`updates that were skipped: ${counters.skipped}`);
  console.log(`training time: ${duration(counters.seconds ?? 0)}`);
  if (run.experiment.startsWith('experiment_'))
    console.log(`to see its groups: npm run watch -- ${quoted(run.folder)}`);
  console.log(`model: ${folder}\ncurves: ${run.folder}/curves.svg`);
  await sayRounding(run, roundingLoss(params, { source, dtype }));
}

/** Says what was rounded away of a final_model in 16 bits, which is not quite the policy that was evaluated. */
async function sayRounding(run: RunFolder, loss: Promise<number>): Promise<void> {
  const lost = await loss.catch((error) => {
    if (mistakeIn(error)) return Number.NaN; // the initial weights were moved since
    throw error;
  });
  if (lost === 0) return;
  const share = Number.isNaN(lost) ? 'an unknown share' : `${briefly(100 * lost)} %`;
  const advice = lost < 0.1 ? '' : `; to store all of it: ${howToResume(run)} --save-dtype float32`;
  console.log(
    `final_model has 16-bit weights: rounding took away ${share} of what training changed (as a norm), after the last evaluation${advice}`,
  );
}
