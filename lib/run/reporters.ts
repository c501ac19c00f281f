/** Where a run's metrics go, besides into its folder. */
import { oneLine, shown } from '../text.ts';
import type { Sample } from './evaluation.ts';
import type { LogEntry } from './metrics.ts';
import type { RunFolder } from './run_folder.ts';
import { createTensorBoard } from './tensorboard.ts';

/** What is told of all that a run logs, when it is logged. */
export type Reporter = {
  /** a line of metrics.jsonl */
  log: (entry: LogEntry) => void;
  /** a text, in Markdown, under a name */
  text: (step: number, name: string, text: string) => void;
  /** waits until all has arrived */
  close: () => Promise<void>;
};

export const REPORTERS = ['tensorboard'] as const;
export type ReporterName = (typeof REPORTERS)[number];

export type ReporterOptions = { reportTo?: ReporterName[] };

/** Opens what `options.reportTo` names; each is told the options of the run, which hold no keys. */
export async function createReporters(
  { reportTo = [], ...options }: ReporterOptions & Record<string, unknown>,
  { folder, step }: Pick<RunFolder, 'folder' | 'step'>,
): Promise<Reporter[]> {
  const reporters = reportTo.map(() => createTensorBoard(folder, step));
  const rows = Object.entries(options).map(([name, value]) => [name, shown(value ?? null)]);
  for (const reporter of reporters) reporter.text(step, 'options', table(['option', 'value'], rows));
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
