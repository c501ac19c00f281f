/** What is shown while held-out questions are asked, and of their answers. */
import type { GenerateOptions } from '../generation/generate.ts';
import { beginning, oneLine } from '../text.ts';
import type { LogEntry } from './metrics.ts';
import { briefly, duration, type Progress, remaining } from './progress.ts';

/** What an evaluation passes on to each `generate`, so that it can be watched. */
export type Watch = Required<Pick<GenerateOptions, 'onProgress'>>;

/** How held-out questions are asked: greedily, and `samples` more times each as in training. */
export type Asking = Partial<Watch> & { samples: number };

/** What came of it: metrics `eval/…`, and the greedy answers to a few questions, which are shown before and after. */
export type Evaluation = { metrics: Record<string, number>; answers: Sample[] };

/** Milliseconds: between two looks at a terminal, and until the first pace says something of the rest. */
const [GLANCE, MEASURED] = [100, 10_000];
/** Seconds from which on an evaluation counts as slow. */
const SLOW = 60;

/**
 * Shows how far an evaluation is, and the time left if no answer ends early.
 * @param answers - how many will be asked for
 * @param options.advice - is said once, with the time that it fills in, if there is a minute or more to go
 */
export function watchEvaluation(
  answers: number,
  bar: Pick<Progress, 'note' | 'log'>,
  { maxNewTokens, advice }: { maxNewTokens: number; advice?: (time: string) => string },
): Watch {
  const began = performance.now();
  let [before, batch, shown, advised] = [0, 0, 0, advice === undefined];
  return {
    onProgress: ({ rows, positions, alive }) => {
      if (positions === 1) [before, batch] = [before + batch, rows];
      const now = performance.now();
      if (now - shown < GLANCE) return;
      shown = now;
      const ended = before + rows - alive;
      // A batch is as far as its positions, or as its rows that have ended, whichever is more.
      const share = Math.max(ended, before + (rows * positions) / maxNewTokens) / answers;
      const left = remaining(began, share);
      if (!advised && now - began > MEASURED) {
        advised = true;
        if (left >= SLOW) bar.log(advice!(duration(left)));
      }
      bar.note(`evaluating: ${Math.round(share * answers)}/${answers} answers · ${duration(left)} left`);
    },
  };
}

/** A line of completions.jsonl. */
export type Sample = Record<string, unknown>;

/** How much fits into a line. */
const lineWidth = () => (process.stdout.columns || 120) - 1;

/** A text on one line, cut where that ends. */
const cut = (text: string, width = lineWidth()): string =>
  beginning(oneLine(text.trimEnd().replace(/[\t\r\n]+/g, ' ')), width);

/** A sample on one line: its reward, the question, of which a long one leaves room for what was answered, and that. */
export const sampleLine = ({ question, completion, reward }: Sample): string =>
  cut(`reward ${briefly(reward)}: ${cut(String(question), Math.floor(lineWidth() / 3))} → ${completion}`);

/**
 * What was answered at the first and at the last of some steps, as lines to print; only at the last, if the questions are
 * others than at the first.
 * @param entries - of {@link Sample}s, `answers`, those of a step each
 */
export function answerLines(entries: LogEntry[]): string[] {
  const asked = entries.map(({ step, answers }) => ({ step, answers: answers as Sample[] }));
  const last = asked.at(-1);
  if (!last || last.step === 0) return [];
  const questions = (answers: Sample[]) => JSON.stringify(answers.map(({ question }) => question));
  const isSame = asked.length > 1 && questions(asked[0].answers) === questions(last.answers);
  const ends = isSame ? [asked[0], last] : [last];
  return last.answers.flatMap(({ question, answer }, i) => [
    cut(`${question} (answer: ${answer})`),
    ...ends.map(({ step, answers: { [i]: said } }) => {
      return cut(`  ${step === 0 ? 'before' : 'after'}, reward ${briefly(said.reward)}: ${said.completion}`);
    }),
  ]);
}
