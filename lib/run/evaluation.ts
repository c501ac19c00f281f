/** What is shown while held-out questions are asked, and of their answers. */
import type { Verdict } from '../environments/answers.ts';
import type { GenerateOptions } from '../generation/generate.ts';
import { mean } from '../statistics.ts';
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

/** A line of completions.jsonl; its tokens, where it has `ids` and `logProbs`, are written as `withPieces` says. */
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
    cut(answer === undefined ? String(question) : `${question} (answer: ${answer})`),
    ...ends.map(({ step, answers: { [i]: said } }) => {
      return cut(`  ${step === 0 ? 'before' : 'after'}, reward ${briefly(said.reward)}: ${said.completion}`);
    }),
  ]);
}

const share = (verdicts: Verdict[], ...counted: Verdict[]) => mean(verdicts.map((v) => Number(counted.includes(v))));

/** The share of right answers, and its two factors: is there an answer, and is it right if there is one? (NaN if never) */
export const accuracies = (verdicts: Verdict[]): Record<string, number> => ({
  'eval/accuracy': share(verdicts, 'right'),
  'eval/format': share(verdicts, 'right', 'wrong'),
  'eval/ability': share(
    verdicts.filter((verdict) => verdict !== 'missing'),
    'right',
  ),
});

/**
 * Of samples: the share of right ones, and pass@k, the chance that at least one of k is right, for k = 2, 4, 8 … n. What is
 * estimated from n samples, of which c are right, is 1 − C(n − c, k) / C(n, k), without bias (Chen et al. 2021, "Evaluating
 * Large Language Models Trained on Code", eq. 1); 1 − (1 − c / n)^k, which comes to mind first, is too low.
 * @param groups - the n samples of each problem; where there are none, nothing is said
 */
export function passAtK(groups: Verdict[][]): Record<string, number> {
  const n = groups[0]?.length ?? 0;
  if (n === 0) return {};
  const powers = Array.from({ length: Math.ceil(Math.log2(n)) }, (_, i) => 2 ** i).slice(1);
  const passed = (group: Verdict[], k: number) => {
    const wrong = group.filter((verdict) => verdict !== 'right').length;
    let allWrong = 1; // the chance that k of the n, drawn without putting back, are all wrong
    for (let i = 0; i < k; i++) allWrong *= Math.max(0, wrong - i) / (n - i);
    return 1 - allWrong;
  };
  const at = (k: number) => [`eval/pass_at_${k}`, mean(groups.map((group) => passed(group, k)))];
  return { 'eval/sampled_accuracy': share(groups.flat(), 'right'), ...Object.fromEntries([...powers, n].map(at)) };
}
