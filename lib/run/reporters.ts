/** Where a run's metrics go, besides into its folder. */
import { oneLine, shown } from '../text.ts';
import type { Sample } from './evaluation.ts';
import type { Reporter } from './metrics.ts';
import type { RunFolder } from './run_folder.ts';
import { createTensorBoard } from './tensorboard.ts';
import { createWandb, type WandbOptions } from './wandb.ts';

export const REPORTERS = ['tensorboard', 'wandb'] as const;
export type ReporterName = (typeof REPORTERS)[number];

export type ReporterOptions = { reportTo?: ReporterName[] } & WandbOptions;

/** Opens what `options.reportTo` names; each is told the options of the run, which hold no keys. */
export async function createReporters(
  { reportTo = [], ...options }: ReporterOptions & Record<string, unknown>,
  run: Pick<RunFolder, 'folder' | 'step' | 'checkpoint' | 'id' | 'history'>,
): Promise<Reporter[]> {
  const reporters: Reporter[] = [];
  for (const name of new Set(reportTo)) {
    const reporter =
      name === 'wandb'
        ? await createWandb(options, run)
        : createTensorBoard(run.folder, run.checkpoint ? run.step : -1);
    if (reporter) reporters.push(reporter);
  }
  const rows = Object.entries(options).map(([name, value]) => [name, shown(value ?? null)]);
  for (const reporter of reporters) reporter.text(run.step, 'options', table(['option', 'value'], rows));
  return reporters;
}

/** Samples as a table. */
export const asMarkdown = (samples: Sample[]): string =>
  table(
    ['question', 'completion', 'reward'],
    samples.map(({ question, completion, reward }) => [question, completion, reward].map(String)),
  );

function table(names: string[], rows: string[][]): string {
  const cell = (text: string) => oneLine(text).replaceAll('|', '\\|').replaceAll('<', '&lt;');
  const line = (cells: string[]) => `| ${cells.map(cell).join(' | ')} |`;
  return [line(names), `|${' --- |'.repeat(names.length)}`, ...rows.map(line)].join('\n');
}
